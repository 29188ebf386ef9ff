"""Pairs by the opposite emotion: keys and distribution of the draws, errors, metrics, and the stage."""

import csv
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import prepare

from attune.config.params import load
from attune.data.dialogue import Dialogue, Example, Turn, normalise, write_dialogues
from attune.data.examples import examples as examples_of
from attune.data.keyed import random_subset
from attune.data.pair import Pair
from attune.labels.opposites import read_opposites
from attune.pairs.metrics import describe, repeated, write_pairs
from attune.pairs.opposite_emotion import build_pairs, group_by_label
from attune.runtime.errors import DataError
from stages.pairs import main

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "data" / "opposite_emotions.csv"
OPPOSITES = {"joyful": "sad", "sad": "joyful", "proud": "ashamed", "ashamed": "proud"}
LABELS = sorted(OPPOSITES)


def dialogue(number, label, reply, split="train"):
    turns = (Turn("user", f"This is story {number}."), Turn("assistant", reply), Turn("user", "Yes."))
    return Dialogue(f"{split}/{number:05d}", "test", split, label, turns)


def dialogues(count, split="train"):
    return [dialogue(i, LABELS[i % len(LABELS)], f"Reply {i} to {split}.", split) for i in range(count)]


def examples(count):
    return examples_of(dialogues(count), "last", None)


def same_target(count, label="joyful", target="Oh no!"):
    """Examples of one label with one target."""
    return [Example(f"asked/{i:05d}", label, (Turn("user", "Hm."),), target) for i in range(count)]


def candidates(*targets, label="sad"):
    return {label: [Example(f"train/{i:05d}", label, (Turn("user", "Hm."),), text) for i, text in enumerate(targets)]}


def epoch_pairs(examples, opposites, limit, seed, epoch):
    """The sampled examples of an epoch and their pairs."""
    part = random_subset(examples, limit, seed)
    return part, build_pairs(part, group_by_label(examples), opposites, seed=seed, epoch=epoch)


def test_order_of_the_input_changes_no_byte(tmp_path):
    ordered = examples(200)
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert shuffled != ordered
    for name, part in (("ordered", ordered), ("shuffled", shuffled)):
        _, pairs = epoch_pairs(part, OPPOSITES, None, seed=13, epoch=2)
        write_pairs(pairs, tmp_path / f"{name}.parquet")
    assert (tmp_path / "ordered.parquet").read_bytes() == (tmp_path / "shuffled.parquet").read_bytes()


@pytest.mark.parametrize("part", [slice(0, 1), slice(37, 90), slice(None, None, 3)])
def test_subset_has_the_draws_of_the_whole(part):
    everything = examples(200)
    groups = group_by_label(everything)
    whole = {pair.id: pair for pair in build_pairs(everything, groups, OPPOSITES, seed=13, epoch=1)}
    few = build_pairs(everything[part], groups, OPPOSITES, seed=13, epoch=1)
    assert few == [whole[e.id] for e in everything[part]]


@pytest.mark.parametrize("other", [{"seed": 13, "epoch": 2}, {"seed": 13, "epoch": 0}, {"seed": 14, "epoch": 1}])
def test_other_epochs_and_seeds_draw_independently(other):
    groups = candidates(*(f"Reply {i}." for i in range(10)))
    first = build_pairs(same_target(4000), groups, OPPOSITES, seed=13, epoch=1)
    second = build_pairs(same_target(4000), groups, OPPOSITES, **other)
    assert build_pairs(same_target(4000), groups, OPPOSITES, seed=13, epoch=1) == first
    equal = sum(a.rejected_id == b.rejected_id for a, b in zip(first, second, strict=True)) / 4000
    # Independent draws of one in ten agree in a tenth of the cases; the standard deviation is 0.0047.
    assert equal == pytest.approx(0.1, abs=0.015)


def test_fields_of_a_pair():
    everything = {e.id: e for e in examples(200)}
    part, pairs = epoch_pairs(examples(200), OPPOSITES, None, seed=13, epoch=3)
    assert sorted(e.id for e in part) == [pair.id for pair in pairs] == sorted(everything)
    for pair in pairs:
        chosen, rejected = everything[pair.id], everything[pair.rejected_id]
        assert (pair.prompt, pair.chosen, pair.label) == (chosen.context, chosen.target, chosen.label)
        assert (pair.rejected, pair.rejected_label) == (rejected.target, rejected.label)
        assert pair.rejected_label == OPPOSITES[pair.label]
        assert pair.epoch == 3


def test_chosen_text_is_never_drawn():
    # All but one have the chosen text, so most first attempts hit it.
    groups = candidates(*["Oh no!", "oh NO", " Oh, no... "] * 100, "I see.")
    pairs = build_pairs(same_target(300), groups, OPPOSITES, seed=13, epoch=1)
    assert [pair.rejected for pair in pairs] == ["I see."] * 300


def test_example_without_another_reply_has_no_pair():
    groups = candidates("Oh no!", "oh no?!")
    part = [*same_target(2), *same_target(1, target="I see.")]
    part[-1] = replace(part[-1], id="asked/other")
    (pair,) = build_pairs(part, groups, OPPOSITES, seed=13, epoch=1)
    assert (pair.id, normalise(pair.rejected)) == ("asked/other", "oh no")


def chi_square(drawn, expected_from):
    counts = Counter(drawn)
    assert set(counts) <= set(expected_from)
    expected = len(drawn) / len(expected_from)
    return sum((counts[text] - expected) ** 2 / expected for text in expected_from)


# The 0.1 % points of the chi-square distribution, by degrees of freedom (number of texts - 1).
CRITICAL = {599: 711.682, 19: 43.820, 18: 42.312, 4: 18.467}


@pytest.mark.parametrize(
    ("chosen_in_group", "others", "draws"),
    [(0, 20, 8000), (1, 19, 8000), (20, 19, 8000), (400, 5, 2000), (1, 600, 12000)],
)
def test_draws_are_uniform_over_other_texts(chosen_in_group, others, draws):
    texts = [f"Reply {i}." for i in range(others)]
    groups = candidates(*texts, *["Oh no!"] * chosen_in_group)
    pairs = build_pairs(same_target(draws), groups, OPPOSITES, seed=13, epoch=1)
    assert chi_square([pair.rejected for pair in pairs], texts) < CRITICAL[others - 1]


def test_chi_square_detects_bias():
    texts = [f"Reply {i}." for i in range(20)]
    generator = random.Random(0)
    biased = [texts[min(generator.randrange(21), 19)] for _ in range(8000)]
    assert chi_square(biased, texts) > CRITICAL[19]


def test_limit_samples_the_same_dialogues_in_each_epoch():
    everything = examples(200)
    parts = [{e.id for e in epoch_pairs(everything, OPPOSITES, 50, 13, epoch)[0]} for epoch in (1, 2, 3)]
    assert parts[0] == parts[1] == parts[2]
    assert len(parts[0]) == 50
    assert {e.id for e in epoch_pairs(everything, OPPOSITES, 50, 14, 1)[0]} != parts[0]
    # The draws are from all train replies, whatever the limit.
    _, pairs = epoch_pairs(everything, OPPOSITES, 50, 13, 1)
    _, all_pairs = epoch_pairs(everything, OPPOSITES, None, 13, 1)
    assert pairs == [pair for pair in all_pairs if pair.id in parts[0]]


def test_random_subset():
    everything = examples(200)
    assert random_subset(everything[::-1], 50, 13) == random_subset(everything, 50, 13)
    # A smaller subset is a prefix of a larger one; None and a limit above the size take all.
    assert random_subset(everything, 80, 13)[:50] == random_subset(everything, 50, 13)
    assert sorted(e.id for e in random_subset(everything, None, 13)) == [e.id for e in everything]
    assert random_subset(everything, 999, 13) == random_subset(everything, None, 13)
    # About half of the first half is in a random half: 50 of 100, standard deviation 3.5.
    half = {e.id for e in random_subset(everything, 100, 13)}
    assert sum(e.id in half for e in everything[:100]) == pytest.approx(50, abs=10)


def test_label_without_opposite_is_an_error():
    everything = [*examples(8), replace(examples(1)[0], id="train/new", label="hungry")]
    with pytest.raises(DataError, match=r"^no opposite in the table for the labels hungry: add a row for each$"):
        build_pairs(everything, group_by_label(everything), OPPOSITES, seed=13, epoch=1)


def test_empty_opposite_group_is_an_error():
    everything = [e for e in examples(40) if e.label not in ("joyful", "ashamed")]
    with pytest.raises(DataError, match=r"nothing can be drawn: proud -> ashamed, sad -> joyful$"):
        build_pairs(everything, group_by_label(everything), OPPOSITES, seed=13, epoch=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table.csv:1: no column emotion, opposite; found nothing"),
        ("emotion,contrary\nsad,joyful\n", "table.csv:1: no column opposite; found emotion, contrary"),
        ("emotion,opposite\nsad,joyful\nsad,proud\n", "table.csv:3: emotion 'sad', opposite 'proud': empty, equal or"),
        ("emotion,opposite\nsad,sad\n", "table.csv:2: emotion 'sad', opposite 'sad': empty, equal or repeated"),
        ("emotion,opposite\nsad,\n", "table.csv:2: emotion 'sad', opposite '': empty, equal or repeated"),
        ("emotion,opposite\n,sad\n", "table.csv:2: emotion '', opposite 'sad': empty, equal or repeated"),
        ("emotion,opposite\nsad\n", "table.csv:2: 1 fields, but the header has 2: 'sad'"),
    ],
)
def test_broken_table_of_opposites(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(message)):
        read_opposites(path)


def test_missing_table_of_opposites(tmp_path):
    with pytest.raises(DataError, match=r"other\.csv is missing: pairs\.table names the table of opposite labels"):
        read_opposites(tmp_path / "other.csv")


def test_table_with_byte_order_mark_and_quotes(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes('\ufeffopposite,emotion,note\r\njoyful,sad,"a, b"\r\n'.encode())
    assert read_opposites(path) == {"sad": "joyful"}


def test_tracked_table_is_the_papers():
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    opposites = read_opposites(TABLE)
    assert len(rows) == len(opposites) == 32
    assert set(opposites.values()) <= set(opposites)
    assert Counter(row["source"] for row in rows) == {"wheel": 11, "dyads": 7, "proposed": 14}
    # The asymmetric rows.
    one_way = {emotion: other for emotion, other in opposites.items() if opposites[other] != emotion}
    assert one_way == {
        "grateful": "disgusted",
        "guilty": "proud",
        "prepared": "anxious",
        "sentimental": "apprehensive",
    }


def pair(id, chosen, rejected, label="sad"):
    return Pair(id, 2, (Turn("user", "Hm."),), chosen, rejected, label, OPPOSITES[label], "train/x")


def test_metrics_by_hand():
    pairs = [
        pair("train/1", "Oh my goodness!", "Nice."),
        pair("train/2", "Well.", "So good", "joyful"),
        pair("train/3", "I see.", "Sounds great!"),
    ]
    earlier = [
        # Repeats the first, with other case and punctuation; the third has the text of another example's.
        replace(pairs[0], epoch=1, rejected="NICE!"),
        replace(pairs[1], epoch=1, rejected="Something else"),
        replace(pairs[0], epoch=1, rejected="Sounds great!"),
    ]
    assert describe(same_target(4), pairs, labels=4) | repeated(pairs, earlier) == {
        "pairs": 3,
        "dropped": 25,  # 1 of 4
        "label_coverage": 50,  # 2 of 4
        "chosen_words": 2,  # 3, 1, 2
        "rejected_words": 1.6667,  # 1, 2, 2
        "longer_rejected": 33.3333,  # the second
        "repeated_rejected": 33.3333,  # the first
    }


def test_stage_draws_from_train_only(tmp_path, monkeypatch):
    params = load(ROOT / "params.yaml")
    params = replace(params, pairs=replace(params.pairs, table=str(TABLE), limit=None))
    monkeypatch.chdir(tmp_path)
    train = dialogues(80)
    write_dialogues(train, Path("data/dialogues/train.parquet"))
    write_dialogues(dialogues(80, "valid"), Path("data/dialogues/valid.parquet"))
    write_dialogues(dialogues(80, "test"), Path("data/dialogues/test.parquet"))
    for key in ("e1", "e2", "e3"):
        main(key, params)

    first, second, third = (pq.read_table(f"data/pairs/{key}.parquet").to_pylist() for key in ("e1", "e2", "e3"))
    later = zip(second, third, strict=True)
    assert [row["future_rejected"] for row in first] == [[two["rejected"], three["rejected"]] for two, three in later]
    assert all(row["future_rejected"] == [] for row in (*second, *third))
    by_id = {e.id: e for e in examples_of(train, "last", None)}
    for epoch, rows in ((1, first), (2, second)):
        assert [row["id"] for row in rows] == sorted(by_id)
        assert {row["epoch"] for row in rows} == {epoch}
        for row in rows:
            assert row["rejected"] == by_id[row["rejected_id"]].target
            assert tuple(Turn(**turn) for turn in row["prompt"]) == by_id[row["id"]].context
    metrics = [json.loads(Path(f"metrics/pairs/{key}.json").read_text()) for key in ("e1", "e2")]
    repeated = sum(a["rejected"] == b["rejected"] for a, b in zip(first, second, strict=True))
    assert [e["repeated_rejected"] for e in metrics] == [0, round(100 * repeated / 80, 4)]
    assert [e["label_coverage"] for e in metrics] == [12.5, 12.5]
    assert repeated < 20


@pytest.fixture(scope="module")
def prepared(corpora_dir):
    return prepare(corpora_dir / "empatheticdialogues", "empathetic_dialogues")


@pytest.mark.corpora
def test_empathetic_dialogues_are_complete(prepared):
    kept, dropped = prepared
    assert Counter(e.split for e in kept) == {"train": 19_530, "valid": 2_769, "test": 2_547}
    assert {reason: count for reason, count in dropped.items() if count} == {
        "train_no_assistant_turn": 2,
        "valid_no_assistant_turn": 1,
    }


@pytest.mark.corpora
def test_epoch_of_empathetic_dialogues(prepared):
    train = [e for e in prepared[0] if e.split == "train"]
    opposites, by_id = read_opposites(TABLE), {e.id: e for e in examples_of(train, "last", None)}
    assert {e.label for e in train} == set(opposites)
    _, pairs = epoch_pairs(examples_of(train, "last", None), opposites, None, seed=13, epoch=1)
    assert [pair.id for pair in pairs] == sorted(by_id)
    for pair in pairs:
        assert pair.label == by_id[pair.id].label
        assert pair.rejected_label == opposites[pair.label] == by_id[pair.rejected_id].label
        assert pair.rejected == by_id[pair.rejected_id].target
        assert normalise(pair.rejected) != normalise(pair.chosen)
