"""Preference pairs: what a draw depends on, how it is distributed, and what it refuses."""

import csv
import json
import multiprocessing
import random
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import prepare

from attune.config.params import load
from attune.data.dialogue import Dialogue, Example, Turn, normalise, write_dialogues
from attune.data.dialogue import examples as examples_of
from attune.data.keyed import random_part
from attune.data.pair import Pair
from attune.pairs.metrics import describe, repeated, write_pairs
from attune.pairs.opposite_emotion import build_pairs, group_by_label, read_opposites
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


def asked(some):
    """The last assistant turn of each dialogue as its target."""
    return [one for dialogue in some for one in examples_of(dialogue, "last", None)]


def examples(count):
    return asked(dialogues(count))


def asking(count, label="joyful", target="Oh no!"):
    """Examples of one label and one target, to draw for many times."""
    return [Example(f"asking/{i:05d}", label, (Turn("user", "Hm."),), target) for i in range(count)]


def candidates(*targets, label="sad"):
    return {label: [Example(f"train/{i:05d}", label, (Turn("user", "Hm."),), text) for i, text in enumerate(targets)]}


def epoch_pairs(examples, opposites, limit, seed, epoch):
    """The examples that an epoch trains on and their pairs, by the definition."""
    part = random_part(examples, limit, seed)
    return part, build_pairs(part, group_by_label(examples), opposites, seed=seed, epoch=epoch)


def test_the_order_of_the_input_does_not_matter(tmp_path):
    ordered = examples(200)
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert shuffled != ordered
    for name, part in (("ordered", ordered), ("shuffled", shuffled)):
        _, pairs = epoch_pairs(part, OPPOSITES, None, seed=13, epoch=2)
        write_pairs(pairs, tmp_path / f"{name}.parquet")
    assert (tmp_path / "ordered.parquet").read_bytes() == (tmp_path / "shuffled.parquet").read_bytes()


@pytest.mark.parametrize("part", [slice(0, 1), slice(37, 90), slice(None, None, 3)])
def test_a_part_draws_what_the_whole_draws(part):
    everything = examples(200)
    groups = group_by_label(everything)
    whole = {pair.id: pair for pair in build_pairs(everything, groups, OPPOSITES, seed=13, epoch=1)}
    few = build_pairs(everything[part], groups, OPPOSITES, seed=13, epoch=1)
    assert few == [whole[one.id] for one in everything[part]]


def test_workers_draw_what_one_process_draws():
    everything = examples(200)
    groups = group_by_label(everything)
    build = partial(build_pairs, groups=groups, opposites=OPPOSITES, seed=13, epoch=1)
    # Fresh processes: each has its own hash seed.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map(build, [everything[i::4] for i in range(4)], chunksize=1)
    assert sorted((pair for part in parts for pair in part), key=lambda pair: pair.id) == build(everything)


@pytest.mark.parametrize("other", [{"seed": 13, "epoch": 2}, {"seed": 13, "epoch": 0}, {"seed": 14, "epoch": 1}])
def test_another_epoch_or_seed_draws_anew(other):
    groups = candidates(*(f"Reply {i}." for i in range(10)))
    first = build_pairs(asking(4000), groups, OPPOSITES, seed=13, epoch=1)
    second = build_pairs(asking(4000), groups, OPPOSITES, **other)
    assert build_pairs(asking(4000), groups, OPPOSITES, seed=13, epoch=1) == first
    equal = sum(a.rejected_id == b.rejected_id for a, b in zip(first, second, strict=True)) / 4000
    # Independent draws of one in ten agree in a tenth of the cases; the standard deviation is 0.0047.
    assert equal == pytest.approx(0.1, abs=0.015)


def test_a_pair_holds_what_it_says():
    everything = {one.id: one for one in examples(200)}
    part, pairs = epoch_pairs(examples(200), OPPOSITES, None, seed=13, epoch=3)
    assert sorted(one.id for one in part) == [pair.id for pair in pairs] == sorted(everything)
    for pair in pairs:
        own, other = everything[pair.id], everything[pair.rejected_id]
        assert (pair.prompt, pair.chosen, pair.label) == (own.context, own.target, own.label)
        assert (pair.rejected, pair.rejected_label) == (other.target, other.label)
        assert pair.rejected_label == OPPOSITES[pair.label]
        assert pair.epoch == 3


def test_the_chosen_text_is_never_drawn():
    # All but one are the chosen text, as normalised: most draws meet it again and again.
    groups = candidates(*["Oh no!", "oh NO", " Oh, no... "] * 100, "I see.")
    pairs = build_pairs(asking(300), groups, OPPOSITES, seed=13, epoch=1)
    assert [pair.rejected for pair in pairs] == ["I see."] * 300


def test_no_other_reply_gives_no_pair():
    groups = candidates("Oh no!", "oh no?!")
    part = [*asking(2), *asking(1, target="I see.")]
    part[-1] = replace(part[-1], id="asking/other")
    (pair,) = build_pairs(part, groups, OPPOSITES, seed=13, epoch=1)
    assert (pair.id, normalise(pair.rejected)) == ("asking/other", "oh no")


def chi_square(drawn, expected_from):
    counts = Counter(drawn)
    assert set(counts) <= set(expected_from)
    expected = len(drawn) / len(expected_from)
    return sum((counts[one] - expected) ** 2 / expected for one in expected_from)


# The 0.1 % points of the chi-square distribution, by degrees of freedom: one less than there are texts to draw.
CRITICAL = {599: 711.682, 19: 43.820, 18: 42.312, 4: 18.467}


@pytest.mark.parametrize(
    ("chosen_in_group", "others", "draws"),
    [(0, 20, 8000), (1, 19, 8000), (20, 19, 8000), (400, 5, 2000), (1, 600, 12000)],
)
def test_draws_are_uniform_over_the_other_texts(chosen_in_group, others, draws):
    texts = [f"Reply {i}." for i in range(others)]
    groups = candidates(*texts, *["Oh no!"] * chosen_in_group)
    pairs = build_pairs(asking(draws), groups, OPPOSITES, seed=13, epoch=1)
    assert chi_square([pair.rejected for pair in pairs], texts) < CRITICAL[others - 1]


def test_the_statistic_tells_a_biased_draw():
    texts = [f"Reply {i}." for i in range(20)]
    generator = random.Random(0)
    biased = [texts[min(generator.randrange(21), 19)] for _ in range(8000)]
    assert chi_square(biased, texts) > CRITICAL[19]


def test_a_limit_takes_the_same_dialogues_in_each_epoch():
    everything = examples(200)
    parts = [{one.id for one in epoch_pairs(everything, OPPOSITES, 50, 13, epoch)[0]} for epoch in (1, 2, 3)]
    assert parts[0] == parts[1] == parts[2]
    assert len(parts[0]) == 50
    assert {one.id for one in epoch_pairs(everything, OPPOSITES, 50, 14, 1)[0]} != parts[0]
    # A part draws from all train replies, and so as the whole does.
    _, pairs = epoch_pairs(everything, OPPOSITES, 50, 13, 1)
    _, all_pairs = epoch_pairs(everything, OPPOSITES, None, 13, 1)
    assert pairs == [pair for pair in all_pairs if pair.id in parts[0]]


def test_a_limit_is_a_random_part():
    everything = examples(200)
    assert random_part(everything[::-1], 50, 13) == random_part(everything, 50, 13)
    # A smaller part is the beginning of a larger one; no limit and a limit beyond the end take all.
    assert random_part(everything, 80, 13)[:50] == random_part(everything, 50, 13)
    assert sorted(one.id for one in random_part(everything, None, 13)) == [one.id for one in everything]
    assert random_part(everything, 999, 13) == random_part(everything, None, 13)
    # Of the first half about half is in a random half: 50 of 100, standard deviation 3.5.
    half = {one.id for one in random_part(everything, 100, 13)}
    assert sum(one.id in half for one in everything[:100]) == pytest.approx(50, abs=10)


def test_an_unknown_label():
    everything = [*examples(8), replace(examples(1)[0], id="train/new", label="hungry")]
    with pytest.raises(DataError, match=r"^no opposite in the table for the labels hungry: add a row for each$"):
        build_pairs(everything, group_by_label(everything), OPPOSITES, seed=13, epoch=1)


def test_an_empty_opposite_group():
    everything = [one for one in examples(40) if one.label not in ("joyful", "ashamed")]
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
        ("emotion,opposite\nsad\n", "table.csv:2: 1 columns, expected 2: 'sad'"),
    ],
)
def test_a_broken_table(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(message)):
        read_opposites(path)


def test_a_missing_table(tmp_path):
    with pytest.raises(DataError, match=r"other\.csv is missing: pairs\.table names the table of opposite labels"):
        read_opposites(tmp_path / "other.csv")


def test_a_table_of_another_program(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes('\ufeffopposite,emotion,note\r\njoyful,sad,"a, b"\r\n'.encode())
    assert read_opposites(path) == {"sad": "joyful"}


def test_the_tracked_table_is_that_of_the_paper():
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    opposites = read_opposites(TABLE)
    assert len(rows) == len(opposites) == 32
    assert set(opposites.values()) <= set(opposites)
    assert Counter(row["source"] for row in rows) == {"wheel": 11, "dyads": 7, "proposed": 14}
    # Where the table is not symmetric.
    one_way = {emotion: other for emotion, other in opposites.items() if opposites[other] != emotion}
    assert one_way == {
        "grateful": "disgusted",
        "guilty": "proud",
        "prepared": "anxious",
        "sentimental": "apprehensive",
    }


def pair(one, chosen, rejected, label="sad"):
    return Pair(one, 2, (Turn("user", "Hm."),), chosen, rejected, label, OPPOSITES[label], "train/x")


def test_describe_by_hand():
    pairs = [
        pair("train/1", "Oh my goodness!", "Nice."),
        pair("train/2", "Well.", "So good", "joyful"),
        pair("train/3", "I see.", "Sounds great!"),
    ]
    earlier = [
        # The first pair's again, but for case and punctuation; the third's, but of another dialogue.
        replace(pairs[0], epoch=1, rejected="NICE!"),
        replace(pairs[1], epoch=1, rejected="Something else"),
        replace(pairs[0], epoch=1, rejected="Sounds great!"),
    ]
    assert describe(asking(4), pairs, labels=4) | repeated(pairs, earlier) == {
        "pairs": 3,
        "dropped": 25,  # 1 of 4
        "label_coverage": 50,  # 2 of 4
        "chosen_words": 2,  # 3, 1, 2
        "rejected_words": 1.6667,  # 1, 2, 2
        "longer_rejected": 33.3333,  # the second
        "repeated_rejected": 33.3333,  # the first
    }


def test_the_stage_draws_from_train_alone(tmp_path, monkeypatch):
    params = load(ROOT / "params.yaml")
    params = replace(params, pairs=replace(params.pairs, opposites=str(TABLE), limit=None))
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
    by_id = {one.id: one for one in asked(train)}
    for epoch, rows in ((1, first), (2, second)):
        assert [row["id"] for row in rows] == sorted(by_id)
        assert {row["epoch"] for row in rows} == {epoch}
        for row in rows:
            assert row["rejected"] == by_id[row["rejected_id"]].target
            assert tuple(Turn(**turn) for turn in row["prompt"]) == by_id[row["id"]].context
    metrics = [json.loads(Path(f"metrics/pairs/{key}.json").read_text()) for key in ("e1", "e2")]
    repeated = sum(a["rejected"] == b["rejected"] for a, b in zip(first, second, strict=True))
    assert [one["repeated_rejected"] for one in metrics] == [0, round(100 * repeated / 80, 4)]
    assert [one["label_coverage"] for one in metrics] == [12.5, 12.5]
    assert repeated < 20


@pytest.fixture(scope="module")
def prepared(corpora_dir):
    return prepare(corpora_dir / "empatheticdialogues", "empathetic_dialogues")


@pytest.mark.corpora
def test_empathetic_dialogues_are_all_there(prepared):
    kept, dropped = prepared
    assert Counter(one.split for one in kept) == {"train": 19_530, "valid": 2_769, "test": 2_547}
    assert {reason: count for reason, count in dropped.items() if count} == {
        "train_no_assistant_turn": 2,
        "valid_no_assistant_turn": 1,
    }


@pytest.mark.corpora
def test_an_epoch_of_empathetic_dialogues(prepared):
    train = [one for one in prepared[0] if one.split == "train"]
    opposites, by_id = read_opposites(TABLE), {one.id: one for one in asked(train)}
    assert {one.label for one in train} == set(opposites)
    _, pairs = epoch_pairs(asked(train), opposites, None, seed=13, epoch=1)
    assert [pair.id for pair in pairs] == sorted(by_id)
    for pair in pairs:
        assert pair.label == by_id[pair.id].label
        assert pair.rejected_label == opposites[pair.label] == by_id[pair.rejected_id].label
        assert pair.rejected == by_id[pair.rejected_id].target
        assert normalise(pair.rejected) != normalise(pair.chosen)
