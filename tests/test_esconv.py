"""The reader of ESConv in its two layouts, and the sample in its format."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from helpers import prepare

from attune.corpora.readers.esconv import read, split_of
from attune.data.dialogue import Dialogue, Turn
from attune.data.examples import examples
from attune.runtime.errors import DataError
from attune.tools.sample_data.esconv import make_files
from attune.tools.sample_data.text import load_phrases

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data/sample/esconv_sample"


def seeker(text):
    return {"text": text, "speaker": "usr"}


def supporter(text, strategy="Question"):
    return {"text": text, "speaker": "sys", "strategy": strategy}


def record(*dialog, label="job crisis"):
    return {"problem_type": label, "situation": "None.", "dialog": list(dialog)}


TALK = record(seeker("I lost my job."), supporter("When?"))


def corpus(folder, train=(TALK,), valid=(TALK,), test=(TALK,)):
    for split, records in (("train", train), ("valid", valid), ("test", test)):
        lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
        (folder / f"{split}.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder


def test_a_conversation(tmp_path):
    one = record(
        seeker(" Hi. "), seeker("I lost my job."), supporter("Oh no.", "Others"), supporter("When?"), seeker("Today.")
    )
    dialogues, dropped = read(corpus(tmp_path, train=[one]))
    turns = (Turn("user", "Hi. I lost my job."), Turn("assistant", "Oh no. When?", "Question"), Turn("user", "Today."))
    assert dialogues[0] == Dialogue("train/1", "esconv", "train", "job crisis", turns)
    assert [each.id for each in dialogues] == ["train/1", "valid/1", "test/1"] and not dropped


def test_a_supporter_without_a_strategy_keeps_the_one_before(tmp_path):
    plain = {"text": "Well.", "speaker": "sys"}
    (one, *_), _ = read(corpus(tmp_path, train=[record(seeker("a"), supporter("b"), plain, seeker("c"), plain)]))
    assert [turn.act for turn in one.turns] == [None, "Question", None, None]


BROKEN = {
    "no json": ("{", "train.txt:1: no JSON: "),
    "no object": ("[]", "train.txt:1: expected an object with problem_type and dialog, found list"),
    "no label": (record(seeker("a"), label=""), "train.txt:1: problem_type should be a text, found ''"),
    "no dialog": ({"problem_type": "x"}, "train.txt:1: dialog should be a list of turns, found None"),
    "empty dialog": (record(), "train.txt:1: dialog should be a list of turns, found list"),
    "no turn": (record("Hi."), "train.txt:1, turn 1: expected an object with speaker and text, found 'Hi.'"),
    "speaker": (record(seeker("a"), {"text": "b", "speaker": "bot"}), "train.txt:1, turn 2: speaker 'bot' is none of"),
    "empty text": (record(seeker("  ")), "train.txt:1, turn 1: text should be a text, found '  '"),
    "strategy": (record(supporter("a", 3)), "train.txt:1, turn 1: strategy should be a text, found 3"),
    "surrogate": (record(seeker("a\ud800")), "train.txt:1, turn 1: text: half of a surrogate pair"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_conversation(tmp_path, case):
    bad, message = BROKEN[case]
    with pytest.raises(DataError, match="^" + re.escape(f"{tmp_path}/{message}")):
        read(corpus(tmp_path, train=[bad]))


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(DataError, match=r"train\.txt is missing: run stage `download`$"):
        read(tmp_path)
    (corpus(tmp_path) / "valid.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"valid\.txt:1: not UTF-8 at byte 3: "):
        read(tmp_path)


KEYS = ["problem_type", "dialog", "text", "speaker", "strategy"]
LEAVES = [None, True, 3, 0.5, "", "usr", "sys", "Hi.", "\x00", "🤗", [], {}]


def odd(random, depth=4):
    """Any JSON, often in the shape of a conversation."""
    kind = random.random() if depth else 1
    if kind < 0.3:
        return [odd(random, depth - 1) for _ in range(random.randint(0, 3))]
    if kind < 0.7:
        return {key: odd(random, depth - 1) for key in random.sample(KEYS, random.randint(0, 5))}
    return random.choice(LEAVES)


@pytest.mark.parametrize("seed", range(40))
def test_any_line_is_read_or_refused_with_its_place(tmp_path, seed):
    random = Random(seed)
    one = json.loads(json.dumps(TALK))
    (one if random.random() < 0.3 else random.choice(one["dialog"]))[random.choice(KEYS)] = odd(random)
    line = json.dumps(one if random.random() < 0.8 else odd(random))
    line = line[: random.randint(1, len(line))] if random.random() < 0.2 else line
    try:
        dialogues, _ = read(corpus(tmp_path, train=[TALK, line]))
    except DataError as error:
        assert str(error).startswith(f"{tmp_path}/train.txt:2")
    else:
        assert dialogues[1].id == "train/2" and all(turn.text.strip() for turn in dialogues[1].turns)


def as_list(records):
    """Records of the three files in the layout of ESConv.json."""
    names = {"usr": "seeker", "sys": "supporter"}
    return [
        {**one, "dialog": [
            {"speaker": names[t["speaker"]], "content": t["text"] + "\n",
             "annotation": {"strategy": t["strategy"]} if "strategy" in t else {}} for t in one["dialog"]
        ]} for one in records
    ]  # fmt: skip


def test_the_layout_of_one_list_has_the_same_turns_and_a_stable_split(tmp_path):
    records = [json.loads(line) for line in (SAMPLE / "train.txt").read_text(encoding="utf-8").splitlines()]
    whole = tmp_path / "ESConv.json"
    whole.write_text(json.dumps(as_list(records)), encoding="utf-8")
    dialogues, _ = read(tmp_path)
    assert [one.turns for one in dialogues] == [one.turns for one in read(SAMPLE)[0] if one.split == "train"]
    shares = Counter(one.split for one in dialogues)
    assert 70 <= shares["train"] <= 100 and shares["valid"] and shares["test"]
    assert all(one.split == split_of(one.turns) for one in dialogues)
    whole.write_text(json.dumps(as_list(records[::-1][:50])), encoding="utf-8")
    before = {one.turns: one.split for one in dialogues}
    assert all(before[one.turns] == one.split for one in read(tmp_path)[0])


def test_a_broken_list(tmp_path):
    for content, message in (("{", "no JSON"), ("{}", "expected a list of conversations"), ("[3]", "conversation 1: ")):
        (tmp_path / "ESConv.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=rf"ESConv\.json: {message}"):
            read(tmp_path)


def test_the_sample_is_what_its_phrases_give_and_has_every_strategy():
    files = make_files(load_phrases(ROOT / "data/sample/esconv_phrases.yaml"))
    for split, text in files.items():
        assert (SAMPLE / f"{split}.txt").read_text(encoding="utf-8") == text
        assert text.isascii() or "fiancé" in text
    dialogues, dropped = prepare(SAMPLE, "esconv")
    assert Counter(one.split for one in dialogues) == {"train": 120, "valid": 24, "test": 24}
    assert 40 < dropped["train_opening_turn"] < 80
    acts = {split: {e.act for d in dialogues if d.split == split for e in examples([d], "every", 7)} for split in files}
    assert acts["train"] == acts["valid"] == acts["test"] and len(acts["train"]) == 8
    assert len({one.text for one in dialogues}) == len(dialogues)


@pytest.mark.corpora
def test_the_real_corpus(corpora_dir, tmp_path):
    dialogues, dropped = prepare(corpora_dir / "esconv", "esconv")
    assert Counter(one.split for one in dialogues) == {"train": 910, "valid": 195, "test": 195}
    assert +dropped == {"train_opening_turn": 488, "valid_opening_turn": 101, "test_opening_turn": 94}
    targets = Counter(one.split for one in dialogues for _ in examples([one], "every", 7))
    assert targets == {"train": 10_191, "valid": 2_156, "test": 2_295}
    failed = (corpora_dir / "esconv" / "FailedESConv.json").read_bytes()
    (tmp_path / "ESConv.json").write_bytes(failed)
    assert Counter(one.split for one in read(tmp_path)[0]) == {"train": 138, "valid": 26, "test": 32}
