"""What the rules of masking find, on self-written lines, and what they leave."""

import re
from collections import Counter
from pathlib import Path

import pytest

from attune.corpora.masking import KINDS, introduced, mask, mask_text, read_names
from attune.data.dialogue import Dialogue, Turn
from attune.runtime.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
NAMES = read_names(ROOT / "data/given_names.csv")
LINES = (ROOT / "tests/masking_lines.txt").read_text(encoding="utf-8").splitlines()[1:]
MARKED = re.compile(r"\{(\w+):([^}]*)\}")


def masked(text):
    counts = Counter()
    return mask_text(text, NAMES, frozenset(introduced(text)), counts), counts


def wanted(line):
    """The line without marks, and as a person would mask it."""
    return MARKED.sub(r"\2", line), MARKED.sub(lambda match: f"[{match[1].upper()}]", line)


def measured():
    """By kind: places that a person would mask, those of them that the rules mask, and all places that they mask."""
    there, hit, found = Counter(), Counter(), Counter()
    for line in LINES:
        got, counts = masked(wanted(line)[0])
        found += counts
        for mark in MARKED.finditer(line):
            there[mark[1]] += 1
            hit[mark[1]] += mark[2] not in got
    return there, hit, found


def test_docs_state_what_the_rules_find():
    """Recall by kind, and how many places are masked that nobody would mask."""
    there, hit, found = measured()
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    for kind in KINDS:
        wrong = found[kind] - hit[kind]
        assert f"| `[{kind.upper()}]` | {there[kind]} | {hit[kind]} | {wrong} |" in text, (kind, there, hit, found)


CASES = {
    "Hi Mark, this is Grace Miller.": "Hi [NAME], this is [NAME].",
    "Mark my words, there is hope and joy in May.": "Mark my words, there is hope and joy in May.",
    "Is Anna's dog Anna\u2019s?": "Is [NAME]'s dog [NAME]\u2019s?",
    "My name is Xiu Ying. I am Xiu Ying.": "My name is [NAME]. I am [NAME].",
    "Dr. Okafor, I know Okafor.": "Dr. [NAME], I know [NAME].",
    "Anna-Lena And I met José Maria dos Santos.": "[NAME] And I met [NAME].",
    "a@b.com, x.y+z@mail.example.co.uk": "[EMAIL], [EMAIL]",
    "See https://a.org/b?c=d. Or www.a.org, or a.org/x.": "See [URL]. Or [URL], or [URL].",
    "It was done.It hurt.Then more.": "It was done.It hurt.Then more.",
    "+1 (555) 010-9999 or 0800-123-4567!": "[PHONE] or [PHONE]!",
    "1999-2004, 12/05/1984, 1990-11-03, 00:12:45, $45000000": "1999-2004, 12/05/1984, 1990-11-03, 00:12:45, $45000000",
    "": "",
}


@pytest.mark.parametrize("text", CASES)
def test_a_line(text):
    assert masked(text)[0] == CASES[text]


@pytest.mark.parametrize("line", LINES)
def test_masking_twice_changes_nothing(line):
    once, counts = masked(wanted(line)[0])
    assert masked(once) == (once, Counter())
    assert sum(counts.values()) == sum(once.count(f"[{kind.upper()}]") for kind in KINDS)


def test_a_name_that_one_side_introduces_is_masked_in_all_turns():
    turns = (
        Turn("user", "My name is Zbigniew.", "neutral"),
        Turn("assistant", "Hello Zbigniew! Zbigniews are rare.", "other"),
        Turn("user", "Anna calls me at 555-010-4477."),
    )
    one = Dialogue("train/1", "c", "train", "x", turns, "low")
    other = Dialogue("train/2", "c", "train", "x", (Turn("user", "Zbigniew?"),))
    (first, second), counts = mask([one, other], NAMES)
    assert [turn.text for turn in first.turns] == [
        "My name is [NAME].", "Hello [NAME]! Zbigniews are rare.", "[NAME] calls me at [PHONE].",
    ]  # fmt: skip
    assert [(turn.role, turn.act) for turn in first.turns] == [(turn.role, turn.act) for turn in turns]
    assert second == other and counts == {"name": 3, "phone": 1, "email": 0, "url": 0}


def test_the_table_of_names(tmp_path):
    assert len(NAMES.alone) > 300 and not NAMES.alone & NAMES.words
    path = tmp_path / "names.csv"
    with pytest.raises(DataError, match=r"names\.csv is missing"):
        read_names(path)
    for text, message in (
        ("", r":1: the header should be name,alone"),
        ("name,alone\nAnna,yes\nbob,yes\n", r":3: expected a capitalised name and yes or no, found 'bob,yes'"),
        ("name,alone\nAnna,maybe\n", ":2: expected"),
        ("name,alone\nAnna\n", ":2: expected"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_names(path)
