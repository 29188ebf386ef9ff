"""Pairs of ranked candidates: ranks and lengths, keys of the draws, samples that do not depend on the batch."""

import copy
import random
from dataclasses import replace

import factory
import pyarrow.parquet as pq
import pytest
import torch
from helpers import ROOT, random_classifiers

from attune.classifiers.epitome.files import load as load_classifiers
from attune.classifiers.epitome.levels import level_logits
from attune.classifiers.epitome.model import MECHANISMS
from attune.config.params import load
from attune.data.dialogue import Example, Turn, normalise
from attune.generation.generate import generate_replies
from attune.generation.sampling import Draws
from attune.models.base_record import RECORD
from attune.models.chat_template import encode_prompt
from attune.models.tiny import make_model, train_tokenizer
from attune.pairs.candidates import corpus_source, other_act_pairs, policy_source
from attune.pairs.epitome import epitome_judge
from attune.pairs.metrics import describe, scores, write_pairs
from attune.pairs.ranked import Candidates, scored_pairs
from attune.runtime.io import write_json

HARDWARE = factory.hardware()
ACTS = ("Question", "Information", "Others")
TEXTS = ["i lost my keys", "so happy today", "a", "my dog ran away and i looked for him all night long", "ok then"]


def example(i, label="job crisis", act=None, target=None):
    act = act or ACTS[i % 3]
    return Example(f"train/{i:04}", label, (Turn("user", f"Story {i}."),), target or f"{act} number {i}.", act)


POOL = [example(i, "job crisis" if i % 2 else "breakup") for i in range(240)]
BY_ID = {e.id: e for e in POOL}


def length_judge(contexts, replies):
    """Longer is better."""
    return [min(len(reply), 100) / 100 for reply in replies]


def from_lists(*replies):
    return lambda examples: Candidates([list(replies[i]) for i in range(len(examples))])


def test_best_is_chosen_and_worst_rejected():
    (pair,), malformed = scored_pairs(
        [example(0)], from_lists(["bb", "dddd", "", "  ", "a", "A!"]), length_judge, name="llm", margin=0.02, epoch=2
    )
    assert (pair.chosen, pair.chosen_score, pair.rejected, pair.rejected_score) == ("dddd", 0.04, "a", 0.01)
    assert (pair.source, pair.epoch, malformed, pair.prompt) == ("llm", 2, 0, example(0).context)


@pytest.mark.parametrize(("margin", "kept"), [(0.0, 1), (0.24, 1), (0.25, 0), (0.9, 0)])
def test_margin_is_exceeded(margin, kept):
    candidates = from_lists(["a" * 25, "b" * 50])
    pairs, _ = scored_pairs([example(0)], candidates, length_judge, name="corpus", margin=margin, epoch=1)
    assert len(pairs) == kept


@pytest.mark.parametrize("replies", [[], ["one"], ["one", "One!"], ["one", "two"]])
def test_equal_scores_give_no_pair(replies):
    pairs, _ = scored_pairs([example(0)], from_lists(replies), length_judge, name="corpus", margin=0, epoch=1)
    assert pairs == []


@pytest.mark.parametrize(
    ("ratio", "found"), [(None, ("a", "e f g h i j")), (2, ("b c", "d e f g")), (1.5, ("d e f g", "e f g h i j"))]
)
def test_chosen_and_rejected_are_of_similar_length(ratio, found):
    levels = {"a": 0.1, "b c": 0.2, "d e f g": 0.7, "e f g h i j": 0.9}
    pairs, _ = scored_pairs(
        [example(0)], from_lists(list(levels)), lambda _, replies: [levels[reply] for reply in replies],
        name="policy", margin=0, epoch=1, length_ratio=ratio,
    )  # fmt: skip
    assert [(pair.rejected, pair.chosen) for pair in pairs] == [found]


def test_lengths_that_are_not_similar_give_no_pair():
    candidates = from_lists(["a", "b c d", "e f g h i j k"])
    assert scored_pairs([example(0)], candidates, length_judge, name="policy", margin=0, epoch=1, length_ratio=2) == (
        [],
        0,
    )


def test_epitome_judges_by_the_expected_level_of_the_mechanism(tmp_path):
    folder, replies = random_classifiers(tmp_path / "epitome"), ["I am so sorry.", "Why?", "That happened to me, too."]
    contexts = [(Turn("user", "My cat died."), Turn("assistant", "Oh."), Turn("user", "Yes."))] * 3
    logits = level_logits(load_classifiers(folder, HARDWARE), ["Yes."] * 3, replies)
    found = {short: epitome_judge(folder, short, HARDWARE)(contexts, replies) for short in MECHANISMS.values()}
    for name, short in MECHANISMS.items():
        by_hand = [(row[1] + 2 * row[2]) / 2 for row in logits[name].softmax(-1).tolist()]
        assert found[short] == pytest.approx(by_hand)
    assert len(set(map(tuple, found.values()))) == 3


def test_reply_without_a_score_is_counted_and_skipped():
    def judge(contexts, replies):
        return [None if "x" in reply else len(reply) / 100 for reply in replies]

    candidates = from_lists(["a", "bbb", "xxxxx"])
    (pair,), malformed = scored_pairs([example(0)], candidates, judge, name="llm", margin=0, epoch=1)
    assert (pair.chosen, pair.rejected, malformed) == ("bbb", "a", 1)


def pairs_of(examples, epoch=1, seed=13, pool=POOL):
    source = corpus_source(pool, 4, seed, epoch)
    return scored_pairs(examples, source, length_judge, name="corpus", margin=0, epoch=epoch)[0]


def test_pairs_do_not_depend_on_order_or_subset():
    whole = {pair.id: pair for pair in pairs_of(POOL)}
    shuffled = random.Random(0).sample(POOL, len(POOL))
    assert {pair.id: pair for pair in pairs_of(shuffled, pool=shuffled)} == whole
    assert pairs_of(POOL[37:90]) == [whole[e.id] for e in POOL[37:90] if e.id in whole]
    for other in ({"epoch": 2}, {"seed": 14}):
        again = {pair.id: (pair.chosen, pair.rejected) for pair in pairs_of(POOL, **other)}
        assert sum(again.get(key) == (pair.chosen, pair.rejected) for key, pair in whole.items()) < len(whole) / 2


def test_corpus_candidates_have_the_same_label_and_another_act():
    candidates = corpus_source(POOL, 4, 13, 1)(POOL).replies
    by_text = {e.target: e for e in POOL}
    for e, (target, *others) in zip(POOL, candidates, strict=True):
        assert target == e.target and len(others) == 3
        for other in map(by_text.get, others):
            assert other.label == e.label and other.act != e.act


def test_label_with_one_act_has_no_other_candidates():
    pool = [example(i, act="Question") for i in range(5)]
    assert corpus_source(pool, 4, 13, 1)(pool).replies == [[e.target] for e in pool]
    assert other_act_pairs(pool, pool, seed=13, epoch=0) == []


def test_held_out_pairs_are_human_replies():
    for pair in other_act_pairs(POOL[:50], POOL, seed=13, epoch=0):
        chosen, rejected = BY_ID[pair.id], BY_ID[pair.rejected_id]
        assert (pair.chosen, pair.rejected, rejected.label) == (chosen.target, rejected.target, chosen.label)
        assert chosen.act != rejected.act and normalise(pair.chosen) != normalise(pair.rejected)


def test_file_and_metrics_have_scores_and_source(tmp_path):
    pairs = pairs_of(POOL)
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


def made(tokenizer):
    return make_model(tokenizer, factory.tiny(vocab_size=320), seed=3).eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    return made(tokenizer)


def sampled(model, tokenizer, texts, seeds, batch_tokens=512, top_p=1.0):
    prompts = [encode_prompt(tokenizer, [Turn("user", text)], 84) for text in texts]
    hardware = replace(HARDWARE, batch_tokens=batch_tokens)
    return generate_replies(model, tokenizer, prompts, 8, hardware, Draws(1.0, top_p, seeds))


def test_sample_depends_on_its_seed_not_its_batch(model, tokenizer):
    texts, seeds = [*TEXTS, *TEXTS], list(range(10))
    together = sampled(model, tokenizer, texts, seeds)
    assert together == sampled(model, tokenizer, texts, seeds, batch_tokens=60)
    assert together[::-1] == sampled(model, tokenizer, texts[::-1], seeds[::-1])
    assert [together[4]] == sampled(model, tokenizer, texts[4:5], seeds[4:5])
    assert len(set(together)) == 10


def test_samples_follow_the_model_distribution(model, tokenizer):
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


def test_narrow_nucleus_is_greedy(model, tokenizer):
    assert sampled(model, tokenizer, TEXTS, range(5), top_p=1e-6) == sampled(
        model, tokenizer, TEXTS, range(50, 55), top_p=1e-6
    )


@pytest.fixture(scope="module")
def policies(tokenizer, tmp_path_factory):
    """The base model's folder, and two adapters on it."""
    from peft import LoraConfig, get_peft_model

    root, model = tmp_path_factory.mktemp("policies"), made(tokenizer)
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    write_json(root / "base" / RECORD, {"source": "made"})
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(copy.deepcopy(model), config).save_pretrained(root / f"adapter{seed}")
    return root


def candidates(policies, folder="adapter1", epoch=1, examples=POOL[:6]):
    settings = replace(load(ROOT / "params.yaml").pairs, max_new_tokens=8, temperature=1.0, top_p=1.0)
    source = policy_source(policies / "base", policies / folder, settings, 64, HARDWARE, 13, epoch, samples=3)
    return dict(zip((e.id for e in examples), source(examples).replies, strict=True))


def test_policy_candidates_depend_on_weights_and_epoch_only(policies):
    replies = candidates(policies)
    assert all(len(texts) == 3 for texts in replies.values()) and replies == candidates(policies)
    for other in (candidates(policies, "base"), candidates(policies, "adapter2"), candidates(policies, epoch=2)):
        assert replies != other
    assert candidates(policies, examples=POOL[:6][::-1]) == replies
    assert candidates(policies, examples=POOL[2:4]) == {e.id: replies[e.id] for e in POOL[2:4]}
