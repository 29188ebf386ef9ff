"""The reader of files with MITI labels: the MI dataset's columns, and CounselChat's."""

import csv
import io
import re
from collections import Counter

import factory
import pytest
from helpers import prepare

from attune.corpora.readers.mi import LABELS, act_of, read
from attune.data.dialogue import Dialogue, Turn
from attune.runtime.errors import DataError

HEADER = ["dialog_id", "turn", "author", "text", "final agreed label"]
NAMES = {"dialogue": "id", "turn": "n", "role": "who", "text": "sentence", "act": "miti"}


def corpus(folder, rows, header=HEADER, file="MI Dataset.csv"):
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\r\n").writerows([header, *rows])
    (folder / file).write_bytes(stream.getvalue().encode())
    return folder


def post(name, text="I cannot sleep.", *answers):
    answers = answers or (("Since when?", "Open Question"),)
    return [[name, 1, "speaker", text, ""], *([name, 2, "listener", answer, label] for answer, label in answers)]


def test_a_dialogue(tmp_path):
    rows = post("sleep | 4", "I cannot\n  sleep.", ("That is hard.", "Support"), ("Since when?", "Open Question"))
    (one,), dropped = read(corpus(tmp_path, [*rows, ["sleep | 4", 3, "speaker", "May.", "-"]]))
    turns = (
        Turn("user", "I cannot sleep."),
        Turn("assistant", "That is hard. Since when?", "Open Question"),
        Turn("user", "May."),
    )
    assert one == Dialogue("train/sleep | 4", "mi", "train", "sleep", turns) and not dropped


def test_other_columns_in_another_order(tmp_path):
    header = ["title", "miti", "sentence", "who", "n", "id"]
    rows = [["t", row[4], row[3], row[2], row[1], row[0]] for row in post("7")]
    corpus(tmp_path, rows, header, "mine.csv")
    (one,), _ = read(tmp_path, "mine.csv", factory.columns(**NAMES))
    assert [turn.act for turn in one.turns] == [None, "Open Question"] and one.label == "mi"
    with pytest.raises(DataError, match=r"mine\.csv:1: no column dialog_id, turn, author, text, final agreed label;"):
        read(tmp_path, "mine.csv")


def test_the_act_of_a_turn_is_its_most_frequent_label_and_of_several_the_last():
    assert act_of(["Support", "Give Information", "Support", "Give Information", "Warn"]) == "Give Information"
    assert act_of(["Give Information", "Support", "Support", "Give Information", "-", ""]) == "Give Information"
    assert act_of(["Warn", "Warn", "Direct"]) == "Warn"
    assert act_of(["Warn", "Direct"]) == "Direct"
    assert act_of(["", "-"]) is None and act_of([]) is None


def test_turns_are_in_order_of_their_numbers_and_sentences_in_that_of_the_file(tmp_path):
    rows = [
        ["1", 10, "listener", "Four.", "Other"],
        ["1", 2, "listener", "Two.", ""],
        ["1", 2, "listener", "Three.", ""],
    ]
    (one,), _ = read(corpus(tmp_path, [*rows, ["1", 1, "speaker", "One.", ""], ["1", 9, "speaker", "Well.", ""]]))
    assert [turn.text for turn in one.turns] == ["One.", "Two. Three.", "Well.", "Four."]


def test_empty_sentences_are_dropped_and_counted(tmp_path):
    rows = [*post("1", "Hi.", ("Yes.", "Other"), ("  ", "Warn")), *post("2", "Ho.", ("", "Warn"))]
    dialogues, dropped = read(corpus(tmp_path, rows))
    assert [turn.act for turn in dialogues[0].turns] == [None, "Other"] and len(dialogues[1].turns) == 1
    assert sum(dropped.values()) == 2 and all(name.endswith("_empty_sentence") for name in dropped)


def test_answers_to_one_post_are_in_one_split(tmp_path):
    rows = [line for i in range(120) for line in post(f"{i}", f"Problem {i % 20}!" if i % 2 else f"problem {i % 20}")]
    found = read(corpus(tmp_path, rows))[0]
    splits = {i: {d.split for d in found if int(d.id.split("/")[1]) % 20 == i} for i in range(20)}
    assert all(len(some) == 1 for some in splits.values())
    assert Counter(split for (split,) in splits.values()) == {"train": 14, "valid": 3, "test": 3}
    backwards = [line for i in range(119, -1, -1) for line in rows[2 * i : 2 * i + 2]]
    assert {d.id for d in read(corpus(tmp_path, backwards))[0]} == {d.id for d in found}


def test_all_broken_rows_are_named(tmp_path):
    rows = [
        ["", 1, "speaker", "Hi.", ""],
        ["1", "one", "speaker", "Hi.", ""],
        ["1", 1, "robot", "Hi.", ""],
        ["1", 1, "speaker", "Two\nlines.", ""],
        ["1", 2, "listener", "Hi.", "support"],
    ]
    with pytest.raises(DataError) as error:
        read(corpus(tmp_path, rows))
    lines = str(error.value).split("\n")
    problems = [
        "2: empty dialog_id",
        "3: turn 'one' is no",
        "4: author 'robot' is none of",
        "7: final agreed label 'support'",
    ]
    assert len(lines) == 4
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(f"{tmp_path}/MI Dataset.csv:{problem}")
    with pytest.raises(DataError, match=re.escape("3: author 'listener', but 'speaker' in line 2")):
        read(corpus(tmp_path, [["1", 1, "speaker", "Hi.", ""], ["1", 1, "listener", "Ho.", ""]]))


@pytest.mark.corpora
def test_the_real_file_of_counsel_chat(corpora_dir):
    named = {**dict(zip(NAMES, HEADER, strict=True)), "act": "Union (without disambiguities)"}
    dialogues, dropped = read(corpora_dir / "mi", "boosting_CC_Augmented.csv", factory.columns(**named))
    assert Counter(d.split for d in dialogues) == {"train": 819, "valid": 166, "test": 144} and not dropped
    assert all([turn.role for turn in d.turns] == ["user", "assistant"] for d in dialogues)
    acts = Counter(d.turns[1].act for d in dialogues)
    assert acts[None] == 220 and acts["Advise without Permission"] == 348 and set(acts) <= {None, *LABELS}
    posts = {split: {d.turns[0].text for d in dialogues if d.split == split} for split in ("train", "valid", "test")}
    assert sum(map(len, posts.values())) == len(set.union(*posts.values())) == 546


def test_prepare_reads_the_published_names(tmp_path):
    kept, _ = prepare(corpus(tmp_path, post("1")), "mi")
    assert [d.id for d in kept] == ["train/1"]
