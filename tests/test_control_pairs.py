"""The controls of the studies: rules random and policy, and pairs that stay the same in every epoch."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import factory
import pyarrow.parquet as pq
import pytest
from helpers import ROOT

from attune.config.checks import _check_rounds, check_across_keys
from attune.config.params import load
from attune.data.dialogue import Dialogue, Example, Turn, normalise, write_dialogues
from attune.pairs.held_out import held_out_pairs
from attune.pairs.policy import policy_pairs
from attune.pairs.random import build
from attune.pairs.ranked import Candidates
from attune.runtime.errors import DataError, ParamsError
from stages.pairs import main

PARAMS = factory.params(pairs=factory.pairs(rule="random"))
LABELS = ("joyful", "sad", "proud", "ashamed")


def example(number, label=None, target=None, split="train"):
    label = label or LABELS[number % 4]
    return Example(f"{split}/{number:05}", label, (Turn("user", f"Story {number}."),), target or f"{label} {number}.")


POOL = [example(number) for number in range(200)]


def test_random_rejects_a_reply_to_any_other_label():
    pairs = build(POOL, POOL, PARAMS, 1)
    by_id = {e.id: e for e in POOL}
    assert [pair.id for pair in pairs] == [e.id for e in POOL] and {pair.epoch for pair in pairs} == {1}
    for pair in pairs:
        chosen, rejected = by_id[pair.id], by_id[pair.rejected_id]
        assert (pair.prompt, pair.chosen, pair.rejected) == (chosen.context, chosen.target, rejected.target)
        assert pair.label == chosen.label != pair.rejected_label == rejected.label
    assert {(pair.label, pair.rejected_label) for pair in pairs} == {(a, b) for a in LABELS for b in LABELS if a != b}


def test_random_draws_depend_on_seed_epoch_and_id_alone():
    whole = {pair.id: pair for pair in build(POOL, POOL, PARAMS, 1)}
    part = build(POOL[37:90][::-1], POOL[::-1], PARAMS, 1)
    assert part == [whole[e.id] for e in POOL[37:90]]
    for params, epoch in ((PARAMS, 2), (PARAMS, 0), (replace(PARAMS, seed=14), 1)):
        again = build(POOL, POOL, params, epoch)
        # Of 150 candidates each.
        assert sum(pair.rejected_id == whole[pair.id].rejected_id for pair in again) < 20


def test_random_draws_are_uniform_over_texts_other_than_the_chosen():
    asked = [example(number, "sad", "Oh no!") for number in range(10_000)]
    pool = [example(20_000 + i, LABELS[i % 2 * 2], f"Reply {i}.") for i in range(20)]
    pool += [example(30_000 + i, "proud", "oh NO") for i in range(40)]
    counts = Counter(pair.rejected for pair in build(asked, [*asked, *pool], PARAMS, 1))
    assert len(counts) == 20 and "oh NO" not in counts
    # 0.1 % point of chi-square with 19 degrees of freedom.
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 43.820


def test_random_needs_two_labels():
    one = [example(number, "sad") for number in range(5)]
    assert build(one, one, PARAMS, 1) == []


SAMPLES = {
    "train/00000": "joyful 0",
    "train/00001": " I see. ",
    "train/00002": "",
    "train/00003": "…",
    "train/00004": "No",
}


def samples(examples):
    return Candidates([[SAMPLES[e.id]] for e in examples])


def test_policy_rejects_a_sample_and_chooses_the_human_reply():
    pairs = policy_pairs(POOL[:5][::-1], samples, 3)
    # The first sample has the words of the reply, the third and the fourth have none.
    assert [(p.id, p.chosen, p.rejected) for p in pairs] == [
        ("train/00001", "sad 1.", "I see."), ("train/00004", "joyful 4.", "No"),
    ]  # fmt: skip
    assert {(p.epoch, p.label == p.rejected_label, p.rejected_id) for p in pairs} == {(3, True, "")}


def test_held_out_pairs_of_policy_are_those_of_random():
    test = [example(number, split="test") for number in range(40)]
    pairs = held_out_pairs(test[:9], test, factory.params(pairs=factory.pairs(rule="policy")))
    assert pairs == held_out_pairs(test[:9], test, PARAMS) == build(test[:9], test, PARAMS, 0) and len(pairs) == 9


def rounds(**candidates):
    inits = {"e1": "models/sft", "e2": "models/dpo/e1", "e3": "models/dpo/e2"}
    return {key: factory.dpo_round(init=inits[key], candidates=value) for key, value in candidates.items()}


HUMAN, EPITOME = "data/dialogues", "models/epitome"
SFT, E1, E2 = "models/sft", "models/dpo/e1", "models/dpo/e2"


@pytest.mark.parametrize(
    ("rule", "fresh", "candidates", "error"),
    [
        ("policy", True, (SFT, E1, E2), None),
        ("policy", False, (SFT, SFT, SFT), None),
        ("random", False, (HUMAN, HUMAN, HUMAN), None),
        ("policy", True, (SFT, SFT, E2), "e2.candidates = 'models/sft', but .* takes 'models/dpo/e1'"),
        ("policy", True, (HUMAN, E1, E2), "e1.candidates = 'data/dialogues', but pairs.rule = 'policy' takes"),
        ("policy", False, (SFT, E1, E2), "pairs.fresh = false they are those of the first round, 'models/sft'"),
        ("random", True, (SFT, HUMAN, HUMAN), "pairs.rule = 'random' takes 'data/dialogues'"),
    ],
)  # fmt: skip
def test_candidates_of_the_controls(rule, fresh, candidates, error):
    chained = rounds(**dict(zip(("e1", "e2", "e3"), candidates, strict=True)))
    params = replace(load(ROOT / "params.yaml"), pairs=factory.pairs(rule=rule, fresh=fresh), rounds=chained)
    if error is None:
        check_across_keys(params, "here")
        return
    with pytest.raises(ParamsError, match=error):
        check_across_keys(params, "here")


@pytest.mark.parametrize(
    ("candidates", "scorer", "error"),
    [
        (SFT, EPITOME, None),
        (SFT, HUMAN, "e1.scorer = 'data/dialogues', but pairs.rule = 'epitome' takes 'models/epitome'"),
        (HUMAN, EPITOME, "e1.candidates = 'data/dialogues', but pairs.rule = 'epitome' takes 'models/sft'"),
    ],
)
def test_rule_epitome_ranks_samples_by_its_classifiers(candidates, scorer, error):
    only = {"e1": factory.dpo_round(init=SFT, candidates=candidates, scorer=scorer)}
    params = replace(load(ROOT / "params.yaml"), pairs=factory.pairs(rule="epitome"), rounds=only)
    if error is None:
        _check_rounds(params, "here")
        return
    with pytest.raises(ParamsError, match=error):
        _check_rounds(params, "here")


@pytest.mark.parametrize("rule", ["opposite_emotion", "random"])
def test_pairs_that_are_not_fresh_are_those_of_the_first_epoch(rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dialogues = [Dialogue(e.id, "test", "train", e.label, (*e.context, Turn("assistant", e.target))) for e in POOL]
    write_dialogues(dialogues, Path("data/dialogues/train.parquet"))
    table = str(ROOT / "data/opposite_emotions.csv")
    fresh = factory.params(pairs=factory.pairs(rule=rule, table=table, limit=50), dpo=factory.dpo(epochs=3))
    kept = replace(fresh, pairs=replace(fresh.pairs, fresh=False))
    found = {}
    for name, params in (("fresh", fresh), ("kept", kept)):
        for key in ("e1", "e2", "e3"):
            main(key, params)
            metrics = json.loads(Path(f"metrics/pairs/{key}.json").read_text(encoding="utf-8"))
            found[name, key] = pq.read_table(f"data/pairs/{key}.parquet").to_pylist(), metrics["repeated_rejected"]
    for key in ("e1", "e2", "e3"):
        rows, repeated = found["kept", key]
        assert [row["rejected"] for row in rows] == [row["rejected"] for row in found["fresh", "e1"][0]]
        assert repeated == (0 if key == "e1" else 100) and not any(row["future_rejected"] for row in rows)
        assert all(normalise(row["rejected"]) != normalise(row["chosen"]) for row in rows)
    assert found["fresh", "e2"][0] != found["fresh", "e1"][0] and found["fresh", "e2"][1] < 50
    assert all(len(row["future_rejected"]) == 2 for row in found["fresh", "e1"][0])


@pytest.mark.parametrize("rule", ["opposite_emotion", "random"])
def test_an_instruction_is_the_system_turn_of_every_prompt(rule, tmp_path, monkeypatch):
    """Before the text of a dialogue's own, and in nothing else; of the held-out pairs, too."""
    monkeypatch.chdir(tmp_path)
    told = (Turn("system", "Be brief."), *POOL[0].context)
    pool = [replace(POOL[0], context=told), *POOL[1:]]
    for split in ("train", "valid"):
        some = [Dialogue(e.id, "test", split, e.label, (*e.context, Turn("assistant", e.target))) for e in pool]
        write_dialogues(some, Path(f"data/dialogues/{split}.parquet"))
    Path("kind.txt").write_text("Be kind.\n", encoding="utf-8")
    plain = factory.params(pairs=factory.pairs(rule=rule, table=str(ROOT / "data/opposite_emotions.csv"), valid=50))
    found = {}
    for instruction in ("data/dialogues", "kind.txt"):
        main("e1", replace(plain, pairs=replace(plain.pairs, instruction=instruction)))
        for name in ("e1", "e1.valid"):
            found.setdefault(name, []).append(pq.read_table(f"data/pairs/{name}.parquet").to_pylist())
    for before, after in found.values():
        assert len(before) == len(after) > 20
        for old, new in zip(before, after, strict=True):
            has_own = old["id"] == POOL[0].id
            assert new["prompt"][0]["text"] == ("Be kind.\n\nBe brief." if has_own else "Be kind.")
            assert new["prompt"][0]["role"] == "system" and new["prompt"][1:] == old["prompt"][has_own:]
            assert old | {"prompt": ()} == new | {"prompt": ()}


def test_a_corpus_of_one_label_has_no_random_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = [
        Dialogue(f"train/{i}", "t", "train", "sad", (Turn("user", "a"), Turn("assistant", f"b {i}"))) for i in range(3)
    ]
    write_dialogues(one, Path("data/dialogues/train.parquet"))
    with pytest.raises(DataError, match=r"no pair was made of 3 examples by pairs\.rule = 'random'"):
        main("e1", PARAMS)
