import csv
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from attune.tools.sample_data.dialogues import (
    as_listener,
    load_phrases,
    make_files,
    sentence_case,
    with_opener,
    write_sample,
)

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
PHRASES = SAMPLE / "phrases.yaml"
SPLITS = {"train": 40, "valid": 5, "test": 5}
HEADER = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags"
MEND = "the tracked sample differs from its phrases: run `python -m attune sample dialogues` and track what it writes"


class Conversation(NamedTuple):
    split: str
    emotion: str
    rows: list[list[str]]

    @property
    def utterances(self):
        return [row[5] for row in self.rows]

    @property
    def last_listener(self):
        return [row[5] for row in self.rows if row[4] == "0"][-1]

    @property
    def text(self):
        spoken = " ".join(self.utterances).replace("_comma_", ",").lower()
        return " ".join(re.findall(r"[a-z0-9']+", spoken))


def split_path(folder, split):
    return folder / "empatheticdialogues" / f"{split}.csv"


def read_lines(split):
    return split_path(SAMPLE, split).read_text(encoding="utf-8").split("\n")


def read_conversations(split):
    grouped = defaultdict(list)
    for line in read_lines(split)[1:-1]:
        row = line.split(",")
        grouped[row[0]].append(row)
    return [Conversation(split, rows[0][2], rows) for rows in grouped.values()]


@pytest.fixture(scope="module")
def conversations():
    return [conversation for split in SPLITS for conversation in read_conversations(split)]


@pytest.fixture(scope="module")
def opposites():
    with (ROOT / "data" / "opposite_emotions.csv").open(encoding="utf-8", newline="") as file:
        return {row["emotion"]: row["opposite"] for row in csv.DictReader(file)}


def test_tracked_files_are_what_the_generator_writes(tmp_path):
    write_sample(PHRASES, tmp_path)
    for split in SPLITS:
        assert split_path(tmp_path, split).read_bytes() == split_path(SAMPLE, split).read_bytes(), MEND


def test_each_emotion_has_its_share_of_each_split(conversations, opposites):
    counts = Counter((conversation.split, conversation.emotion) for conversation in conversations)
    assert counts == {(split, emotion): n for split, n in SPLITS.items() for emotion in opposites}
    assert len(opposites) == 32


@pytest.mark.parametrize("split", SPLITS)
def test_lines_have_the_format_of_the_originals(split):
    header, *rows, after_last_newline = read_lines(split)
    assert header == HEADER
    assert after_last_newline == ""
    for line in rows:
        fields = line.split(",")
        assert len(fields) == 8
        assert all(fields[:6])
        assert fields[6:] == ["", ""]
        assert re.fullmatch(r"hit:\d+_conv:\d+", fields[0])
        assert not re.search(r'["$\r\t]|  ', line)


def test_conversation_ids_are_in_one_split_only(conversations):
    ids = Counter(conversation.rows[0][0] for conversation in conversations)
    assert set(ids.values()) == {1}


def test_turns_alternate_from_the_speaker(conversations):
    for conversation in conversations:
        assert 4 <= len(conversation.rows) <= 6
        for index, row in enumerate(conversation.rows, start=1):
            assert row[1] == str(index)
            assert row[4] == str(index % 2)


def test_label_and_situation_are_the_same_on_each_row(conversations):
    for conversation in conversations:
        assert len({(row[2], row[3]) for row in conversation.rows}) == 1


def test_four_turns_are_the_most_common_of_all_lengths(conversations):
    lengths = Counter(len(conversation.rows) for conversation in conversations)
    assert set(lengths) == {4, 5, 6}
    assert lengths[4] > lengths[5] + lengths[6]


def test_no_dialogue_text_is_there_twice(conversations):
    repeated = [text for text, n in Counter(c.text for c in conversations).items() if n > 1]
    assert repeated == []


def test_no_last_reply_is_shared_with_the_opposite_emotion(conversations, opposites):
    replies = defaultdict(set)
    for conversation in conversations:
        replies[conversation.emotion].add(conversation.last_listener)
    assert [e for e, opposite in opposites.items() if replies[e] & replies[opposite]] == []


def test_last_replies_vary_within_each_emotion(conversations):
    replies = defaultdict(set)
    for conversation in conversations:
        if conversation.split == "train":
            replies[conversation.emotion].add(conversation.last_listener)
    assert [emotion for emotion, texts in replies.items() if len(texts) < 20] == []


def test_last_replies_are_neither_curt_nor_long(conversations):
    lengths = {len(conversation.last_listener.split()) for conversation in conversations}
    assert min(lengths) >= 8
    assert max(lengths) <= 30


def test_phrases_have_material_for_each_emotion(opposites):
    emotions = load_phrases(PHRASES)["emotions"]
    assert set(emotions) == set(opposites)
    for material in emotions.values():
        assert len(material["frames"]) >= 5
        assert len(material["exchanges"]) >= 5
        assert len(material["last"]) >= 7
        assert len(material["close"]) >= 3
        assert all(len(frame["open"]) >= 2 for frame in material["frames"])


def test_adding_to_one_emotion_leaves_the_others_as_they_are():
    phrases = load_phrases(PHRASES)
    before = make_files(phrases)["train"].split("\n")
    phrases["emotions"]["sad"]["last"].append("That is a new reply of nine words about $thing.")
    after = make_files(phrases)["train"].split("\n")
    assert [row for row in before if ",sad," not in row] == [row for row in after if ",sad," not in row]


@pytest.mark.parametrize(
    ("said", "heard"),
    [("my sister", "your sister"), ("the job I wanted", "the job you wanted"), ("I'm a myth", "you're a myth")],
)
def test_fills_are_turned_to_the_other_person(said, heard):
    assert as_listener(said) == heard


def test_sentences_start_with_a_capital():
    assert sentence_case("my dog ran. he's back! is he?") == "My dog ran. He's back! Is he?"


@pytest.mark.parametrize(
    ("text", "opened"), [("My dog ran.", "So, my dog ran."), ("I'm tired.", "So, I'm tired."), ("In May", "So, in May")]
)
def test_openers_keep_only_the_capital_of_i(text, opened):
    assert with_opener("So,", text) == opened
