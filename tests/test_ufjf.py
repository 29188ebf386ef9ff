"""The reader of UFJF's private sessions, on made-up ones."""

import csv
import io
from collections import Counter
from itertools import chain
from random import Random

import pytest

from attune.corpora.readers.csv_rows import SHOWN
from attune.corpora.readers.ufjf import read
from attune.data.dialogue import Dialogue, Turn
from attune.runtime.errors import DataError

HEADER = ["session", "patient", "turn", "role", "text", "focus", "act", "quality"]


def corpus(folder, rows, header=HEADER):
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *(row[: len(header)] for row in rows)])
    (folder / "sessions.csv").write_text(stream.getvalue(), encoding="utf-8")
    return folder


def session(name, patient, *texts, focus="tobacco", quality=""):
    roles = ("patient", "psychologist")
    return [[name, patient, i, roles[i % 2], text, focus, "", quality] for i, text in enumerate(texts)]


SESSION = [
    ["s1", "p1", 1, "psychologist", "Como foi?", "tobacco", "question", "high"],
    ["s1", "p1", 3, "patient", "Eu fumei.", "tobacco", "sustain", "high"],
    ["s1", "p1", 2, "patient", "Mal.", "tobacco", "", "high"],
    ["s1", "p1", 7, "psychologist", "Foi difícil.", "tobacco", "reflection", "high"],
]


def test_a_session(tmp_path):
    (one,), dropped = read(corpus(tmp_path, SESSION))
    turns = (
        Turn("assistant", "Como foi?", "question"),
        Turn("user", "Mal. Eu fumei.", "sustain"),
        Turn("assistant", "Foi difícil.", "reflection"),
    )
    assert one == Dialogue("train/s1", "ufjf", "train", "tobacco", turns, "high") and not dropped


def test_optional_columns_may_be_missing(tmp_path):
    (one,), _ = read(corpus(tmp_path, SESSION, HEADER[:6]))
    assert one.quality is None and {turn.act for turn in one.turns} == {None}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ([*HEADER[:6], "acts", "quality"], "unknown column 'acts': the columns are session, .*, act, quality$"),
        ([*HEADER, ""], "unknown column ''"),
        ([*HEADER[:7], "act"], "repeated column: session, "),
    ],
)
def test_another_column_is_refused(tmp_path, header, said):
    with pytest.raises(DataError, match=rf"sessions\.csv:1: {said}"):
        read(corpus(tmp_path, [[*row, ""] for row in SESSION], header))


@pytest.mark.parametrize("seed", range(5))
def test_a_patient_is_in_one_split_and_every_split_has_patients(tmp_path, seed):
    """As in the corpus: 15 sessions of 13 patients."""
    random = Random(seed)
    patients = [f"p{i}" for i in range(13)] + random.sample([f"p{i}" for i in range(13)], 2)
    blocks = [session(f"s{i}", patient, f"Story {i}.", "So?") for i, patient in enumerate(patients)]
    splits = [{d.id.split("/")[1]: d.split for d in read(corpus(tmp_path, list(chain.from_iterable(blocks))))[0]}]
    random.shuffle(blocks)
    splits.append({d.id.split("/")[1]: d.split for d in read(corpus(tmp_path, list(chain.from_iterable(blocks))))[0]})
    assert splits[0] == splits[1] and len(splits[0]) == 15
    by_patient = {}
    for i, patient in enumerate(patients):
        by_patient.setdefault(patient, set()).add(splits[0][f"s{i}"])
    assert Counter(split for (split,) in by_patient.values()) == {"train": 9, "valid": 2, "test": 2}


def test_all_broken_rows_are_named(tmp_path):
    rows = [
        ["s1", "p1", 1, "patient", "Oi.", "tobacco", "", ""],
        ["s1", "", 2, "psychologist", "Oi.", "tobacco", "", ""],
        ["s1", "p1", "x", "patient", "Oi.", "tobacco", "", ""],
        ["s1", "p1", 4, "client", "Oi.", "tobacco", "", ""],
        ["s1", "p1", 5, "patient", " ", "tobacco", "", ""],
        ["s1", "p1", 6, "patient", "Oi.", "", "", ""],
        ["s1", "p1", 7, "patient", "Oi.", "tobacco", "reflection", ""],
        ["s1", "p1", 8, "psychologist", "Oi.", "tobacco", "change", ""],
        ["s1", "p1", 9, "patient", "Oi.", "tobacco", "", "good"],
    ]
    with pytest.raises(DataError) as error:
        read(corpus(tmp_path, rows))
    wrong = [
        "patient",
        "turn 'x'",
        "role 'client'",
        "text",
        "focus",
        "act 'reflection'",
        "act 'change'",
        "quality 'good'",
    ]
    for line, (number, what) in zip(str(error.value).split("\n"), enumerate(wrong, start=3), strict=True):
        assert line.startswith(f"{tmp_path}/sessions.csv:{number}: ") and what in line


def test_what_does_not_go_together_is_named_by_line(tmp_path):
    rows = session("s1", "p1", "a", "b", "c") + session("s2", "p2", "d", "e", quality="high")
    rows[1][1], rows[2][2], rows[4][7] = "p9", 0, "low"
    with pytest.raises(DataError) as error:
        read(corpus(tmp_path, rows))
    assert [line.removeprefix(f"{tmp_path}/sessions.csv:") for line in str(error.value).split("\n")] == [
        "3: patient 'p9', but 'p1' in line 2",
        "4: turn 0 is also in line 2",
        "6: quality 'low', but 'high' in line 5",
    ]


def test_the_first_bad_rows_are_named_and_the_rest_counted(tmp_path):
    with pytest.raises(DataError) as error:
        read(corpus(tmp_path, session("s1", "p1", *[""] * (SHOWN + 3))))
    lines = str(error.value).split("\n")
    assert len(lines) == SHOWN + 1 and lines[-1] == "… and 3 more bad rows"
