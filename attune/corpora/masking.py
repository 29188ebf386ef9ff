"""Masking of names, e-mail addresses, phone numbers and URLs in dialogues, by rules and without a model.

`docs/data.md` lists what the rules miss. Masking is no anonymisation: jobs, places and dates, which can identify a
person as well, are kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from attune.data.dialogue import Dialogue
from attune.runtime.errors import DataError
from attune.runtime.io import read_csv

KINDS = ("name", "email", "phone", "url")
COLUMNS = ["name", "alone"]

EMAIL = re.compile(r"\b[\w.%+-]+@\w[\w-]*(?:\.[\w-]+)*\.\w{2,}\b")
# Without www or http, only top-level domains that are no words, since texts lack spaces after a full stop ("done.It").
URL = re.compile(
    r"(?i:https?://|www\.)[^\s<>\"]*[\w/=#]"
    r"|\b(?:[A-Za-z0-9-]+\.)+(?:com|org|net|edu|gov|co\.uk)(?:\.[a-z]{2})?\b(?:/[^\s<>\"]*[\w/=#])?"
)
# Seven to fifteen digits (ITU-T E.164), in groups. Numbers that are not in use are masked as well, so a library of
# numbering plans would not help.
PHONE = re.compile(r"(?<![\w.,/:$£€-])\+?\(?\d(?:[ .()/-]{0,2}\d){6,14}(?![\w:])")
DATE = re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{1,4}|(?:19|20)\d\d ?[-/] ?(?:19|20)\d\d")

# A capitalised word, possibly of two parts (Mary-Ann, O'Neill), and a full name of up to three of them.
WORD = r"\b[A-ZÀ-ÖØ-Þ](?:[^\W\d_]|['\u2019-](?=[^\W\d_]))*"
FULL = rf"{WORD}(?: (?:(?:d[aeo]s?|van|von) )?{WORD}){{0,2}}"
# Phrases that introduce a name, and hardly anything else.
INTRODUCED = re.compile(
    rf"\b(?i:name is|name was|name['\u2019]s|named|calls? me|nome é|me chamo)(?: uh,| um,|,)? (?P<name>{FULL})"
)
TITLE = re.compile(r"Mrs?|Ms|Miss|Dr|Prof|Doctor|Professor|Senhora?|Dona|Sra?")
TITLED = re.compile(rf"\b(?:{TITLE.pattern})\.? (?P<name>{FULL})")
# Phrases after which a name of the table that is also a word (Will, Grace) is masked.
ADDRESSED = re.compile(
    rf"\b(?i:I am|I['\u2019]m|this is|it['\u2019]s|hi|hello|hey|dear|thanks|thank you|okay|ok|goodbye|bye|morning|"
    rf"afternoon|evening|so|well|right|yes|no|sorry),? (?P<name>{WORD})"
)
# Capitalised words that are not part of a name, but start what follows it.
NO_NAME = re.compile(
    r"I(?:'(?:m|ve|ll|d))?|An?|And|As|At|But|He|If|In|It|My|No|Not|On|Or|She|So|Th(?:at|e|ey|is)|To|We|Well|Wh(?:at|en|"
    r"ere|o|y)|Yes|Your?|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|God|Eu?"
)


@dataclass(frozen=True)
class Names:
    """Given names: those that are always masked, and those that are also words (Will, Grace)."""

    alone: frozenset[str]
    words: frozenset[str]


def read_names(path: Path) -> Names:
    """Read a csv table with the columns name and alone (yes, or no for a name that is also a word).

    Raises:
        DataError: the file is missing or has another header or value; it names the line.
    """
    rows = read_csv(path, DataError, "corpus.mask takes given names from it")
    if not rows or rows[0][1] != COLUMNS:
        raise DataError(f"{path}:1: the header should be {','.join(COLUMNS)}")
    names: dict[str, set[str]] = {"yes": set(), "no": set()}
    for line, row in rows[1:]:
        if len(row) != len(COLUMNS) or row[1] not in names or not re.fullmatch(WORD, row[0]):
            raise DataError(f"{path}:{line}: expected a capitalised name and yes or no, found {','.join(row)[:40]!r}")
        names[row[1]].add(row[0])
    return Names(frozenset(names["yes"]), frozenset(names["no"]))


def mask(dialogues: Sequence[Dialogue], names: Names) -> tuple[list[Dialogue], Counter[str]]:
    """Replace what the rules find in all turns by [NAME], [EMAIL], [PHONE] or [URL].

    A name that is introduced in a dialogue is masked in all of its turns.

    Returns:
        The dialogues in their order, and the number of masks by kind (`KINDS`).
    """
    counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    return [_mask_dialogue(dialogue, names, counts) for dialogue in dialogues], counts


def _mask_dialogue(dialogue: Dialogue, names: Names, counts: Counter[str]) -> Dialogue:
    known = frozenset(part for turn in dialogue.turns for part in introduced(turn.text))
    turns = (replace(turn, text=mask_text(turn.text, names, known, counts)) for turn in dialogue.turns)
    return replace(dialogue, turns=tuple(turns))


def introduced(text: str) -> set[str]:
    """The names that follow an introduction or a title."""
    matches = (*INTRODUCED.finditer(text), *TITLED.finditer(text))
    return {part for match in matches for part in _parts(match["name"]) if len(part) > 1}


def mask_text(text: str, names: Names, known: frozenset[str], counts: Counter[str]) -> str:
    """The masked text; adds the number of masks to `counts`, one for a name of several parts.

    Args:
        text: of a turn.
        names: the table.
        known: names that the dialogue introduces.
        counts: by kind.
    """
    for kind, pattern in (("email", EMAIL), ("url", URL), ("phone", PHONE)):
        text = pattern.sub(partial(_mask_match, kind, counts), text)
    certain = known | names.alone
    starts = {m.start("name") for m in ADDRESSED.finditer(text) if _stem(m["name"]) in names.words}
    # Mary-Ann is masked if Mary is.
    starts |= {m.start() for m in re.finditer(WORD, text) if certain & {_stem(m[0]), *_stem(m[0]).split("-")}}
    return _replaced(text, sorted(starts), counts)


def _mask_match(kind: str, counts: Counter[str], match: re.Match[str]) -> str:
    if kind == "phone" and DATE.fullmatch(match[0]):
        return match[0]
    counts[kind] += 1
    return f"[{kind.upper()}]"


def _parts(name: str) -> Iterable[str]:
    """The capitalised words of a full name, up to the first that is not part of it."""
    for part in map(_stem, name.split()):
        if NO_NAME.fullmatch(part):
            return
        if part[0].isupper() and not TITLE.fullmatch(part):
            yield part


def _stem(word: str) -> str:
    """The word without a genitive 's."""
    return re.sub(r"'s$", "", word.replace("\u2019", "'"))


def _replaced(text: str, starts: Sequence[int], counts: Counter[str]) -> str:
    """The text with the names that start at `starts` masked, each with the capitalised words that follow."""
    parts, done = [], 0
    for start in starts:
        if start >= done:
            parts.append(text[done:start])
            done = _end(text, start)
            counts["name"] += 1
    return "[NAME]".join([*parts, text[done:]])


def _end(text: str, start: int) -> int:
    """The end of the full name that starts at `start`: before a word that is not part of it, or a genitive 's."""
    full = re.compile(FULL).match(text, start)
    assert full is not None  # a name starts with a word
    end = start
    for part in re.finditer(WORD, full[0]):
        if NO_NAME.fullmatch(_stem(part[0])):
            break
        end = start + part.start() + len(_stem(part[0]))
    return end
