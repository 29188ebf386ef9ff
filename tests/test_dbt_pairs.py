"""Pairs by the stages of DBT: which candidate wins, what a draw depends on, and samples that no batch moves."""

import copy
import random
from dataclasses import replace

import factory
import pyarrow.parquet as pq
import pytest
import torch
from helpers import ROOT

from attune.config.params import load
from attune.data.dialogue import Example, Turn, normalise
from attune.generation.generate import generate_replies
from attune.generation.sampling import Draws
from attune.models.base_record import RECORD
from attune.models.chat_template import encode_prompt
from attune.models.tiny import make_model, train_tokenizer
from attune.pairs.dbt import Candidates, scored_pairs
from attune.pairs.dbt_candidates import corpus_source, other_act_pairs, policy_source
from attune.pairs.metrics import describe, scores, write_pairs
from attune.runtime.io import write_json

HARDWARE = factory.hardware()
ACTS = ("Question", "Information", "Others")
TEXTS = ["i lost my keys", "so happy today", "a", "my dog ran away and i looked for him all night long", "ok then"]


def an_example(i, label="job crisis", act=None, target=None):
    act = act or ACTS[i % 3]
    return Example(f"train/{i:04}", label, (Turn("user", f"Story {i}."),), target or f"{act} number {i}.", act)


POOL = [an_example(i, "job crisis" if i % 2 else "breakup") for i in range(240)]
BY_ID = {one.id: one for one in POOL}


def length_judge(contexts, replies):
    """Longer is better: a score that a reader can check."""
    return [min(len(reply), 100) / 100 for reply in replies]


def from_lists(*replies):
    return lambda examples: Candidates([list(replies[i]) for i in range(len(examples))])


def test_the_best_is_chosen_and_the_worst_rejected_with_their_scores():
    (pair,), malformed = scored_pairs(
        [an_example(0)], from_lists(["bb", "dddd", "", "  ", "a", "A!"]), length_judge, name="llm", margin=0.02, epoch=2
    )
    assert (pair.chosen, pair.chosen_score, pair.rejected, pair.rejected_score) == ("dddd", 0.04, "a", 0.01)
    assert (pair.source, pair.epoch, malformed, pair.prompt) == ("llm", 2, 0, an_example(0).context)


@pytest.mark.parametrize(("margin", "kept"), [(0.0, 1), (0.24, 1), (0.25, 0), (0.9, 0)])
def test_a_pair_exceeds_its_margin(margin, kept):
    candidates = from_lists(["a" * 25, "b" * 50])
    pairs, _ = scored_pairs([an_example(0)], candidates, length_judge, name="corpus", margin=margin, epoch=1)
    assert len(pairs) == kept


@pytest.mark.parametrize("replies", [[], ["one"], ["one", "One!"], ["one", "two"]])
def test_without_two_different_scores_there_is_no_pair(replies):
    pairs, _ = scored_pairs([an_example(0)], from_lists(replies), length_judge, name="corpus", margin=0, epoch=1)
    assert pairs == []


def test_a_reply_without_judgement_is_counted_and_passed_over():
    def judge(contexts, replies):
        return [None if "x" in reply else len(reply) / 100 for reply in replies]

    candidates = from_lists(["a", "bbb", "xxxxx"])
    (pair,), malformed = scored_pairs([an_example(0)], candidates, judge, name="llm", margin=0, epoch=1)
    assert (pair.chosen, pair.rejected, malformed) == ("bbb", "a", 1)


def made(examples, epoch=1, seed=13, pool=POOL):
    source = corpus_source(pool, 4, seed, epoch)
    return scored_pairs(examples, source, length_judge, name="corpus", margin=0, epoch=epoch)[0]


def test_order_part_and_pool_order_do_not_matter():
    whole = {pair.id: pair for pair in made(POOL)}
    shuffled = random.Random(0).sample(POOL, len(POOL))
    assert {pair.id: pair for pair in made(shuffled, pool=shuffled)} == whole
    assert made(POOL[37:90]) == [whole[one.id] for one in POOL[37:90] if one.id in whole]
    for other in ({"epoch": 2}, {"seed": 14}):
        again = {pair.id: (pair.chosen, pair.rejected) for pair in made(POOL, **other)}
        assert sum(again.get(key) == (pair.chosen, pair.rejected) for key, pair in whole.items()) < len(whole) / 2


def test_people_answered_the_same_problem_with_another_strategy():
    candidates = corpus_source(POOL, 4, 13, 1)(POOL).replies
    by_text = {one.target: one for one in POOL}
    for one, (own, *others) in zip(POOL, candidates, strict=True):
        assert own == one.target and len(others) == 3
        for other in map(by_text.get, others):
            assert other.label == one.label and other.act != one.act


def test_a_label_of_one_strategy_has_no_other_reply():
    pool = [an_example(i, act="Question") for i in range(5)]
    assert corpus_source(pool, 4, 13, 1)(pool).replies == [[one.target] for one in pool]
    assert other_act_pairs(pool, pool, seed=13, epoch=0) == []


def test_held_out_pairs_are_people_against_people():
    for pair in other_act_pairs(POOL[:50], POOL, seed=13, epoch=0):
        own, other = BY_ID[pair.id], BY_ID[pair.rejected_id]
        assert (pair.chosen, pair.rejected, other.label) == (own.target, other.target, own.label)
        assert own.act != other.act and normalise(pair.chosen) != normalise(pair.rejected)


def test_pairs_carry_scores_and_source_into_their_file_and_metrics(tmp_path):
    pairs = made(POOL)
    write_pairs(pairs, tmp_path / "e1.parquet")
    rows = pq.read_table(tmp_path / "e1.parquet").to_pylist()
    assert [(r["chosen_score"], r["rejected_score"], r["source"]) for r in rows] == [
        (pair.chosen_score, pair.rejected_score, "corpus") for pair in pairs
    ]
    metrics = describe(POOL, pairs, 2) | scores(pairs)
    assert metrics["pairs"] == len(pairs) and metrics["label_coverage"] == 100
    assert metrics["chosen_score"] > metrics["rejected_score"] > 0


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, 320, 128)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer, factory.tiny(vocab_size=320), seed=3).eval()


def sampled(model, tokenizer, texts, seeds, batch_tokens=512, top_p=1.0):
    prompts = [encode_prompt(tokenizer, [Turn("user", text)], 84) for text in texts]
    hardware = replace(HARDWARE, batch_tokens=batch_tokens)
    return generate_replies(model, tokenizer, prompts, 8, hardware, Draws(1.0, top_p, seeds))


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(model, tokenizer):
    texts, seeds = [*TEXTS, *TEXTS], list(range(10))
    together = sampled(model, tokenizer, texts, seeds)
    assert together == sampled(model, tokenizer, texts, seeds, batch_tokens=60)
    assert together[::-1] == sampled(model, tokenizer, texts[::-1], seeds[::-1])
    assert [together[4]] == sampled(model, tokenizer, texts[4:5], seeds[4:5])
    assert len(set(together)) == 10


def test_samples_follow_the_models_distribution(model, tokenizer):
    """First tokens of 2000 samples against the probabilities of one forward pass."""
    prompt = encode_prompt(tokenizer, [Turn("user", "ok")], 84)
    with torch.no_grad():
        probabilities = (model(torch.tensor([prompt])).logits[0, -1] / 0.2).softmax(-1)
    best = int(probabilities.argmax())
    texts = generate_replies(model, tokenizer, [prompt] * 2000, 1, HARDWARE, Draws(0.2, 1.0, range(2000)))
    share = sum(text == tokenizer.decode([best], skip_special_tokens=True).strip() for text in texts) / 2000
    expected = probabilities[best].item()
    assert 0.01 < expected < 0.99
    assert share == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 2000) ** 0.5)


def test_a_narrow_nucleus_is_greedy(model, tokenizer):
    assert sampled(model, tokenizer, TEXTS, range(5), top_p=1e-6) == sampled(
        model, tokenizer, TEXTS, range(50, 55), top_p=1e-6
    )


@pytest.fixture(scope="module")
def policies(model, tokenizer, tmp_path_factory):
    """The base model's folder, and two adapters on it."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("policies")
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    write_json(root / "base" / RECORD, {"hub_id": None, "commit": None})
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(copy.deepcopy(model), config).save_pretrained(root / f"adapter{seed}")
    return root


def candidates(policies, folder="adapter1", epoch=1, examples=POOL[:6]):
    settings = replace(load(ROOT / "params.yaml").pairs, samples=3, max_new_tokens=8, temperature=1.0, top_p=1.0)
    made = policy_source(policies / "base", policies / folder, settings, 64, HARDWARE, 13, epoch)(examples)
    return dict(zip((one.id for one in examples), made.replies, strict=True))


def test_candidates_of_the_policy_hang_on_its_weights_and_the_epoch_and_on_no_other_example(policies):
    found = candidates(policies)
    assert all(len(replies) == 3 for replies in found.values()) and found == candidates(policies)
    for other in (candidates(policies, "base"), candidates(policies, "adapter2"), candidates(policies, epoch=2)):
        assert found != other
    assert candidates(policies, examples=POOL[:6][::-1]) == found
    assert candidates(policies, examples=POOL[2:4]) == {one.id: found[one.id] for one in POOL[2:4]}
