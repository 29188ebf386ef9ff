"""ESConv (Liu et al. 2021, CC BY-NC 4.0, academic research): emotional support conversations to `Dialogue` records.

There are two layouts. `train.txt`, `valid.txt` and `test.txt` have a conversation on each line, as JSON::

    {"problem_type": …, "dialog": [{"speaker": "usr" | "sys", "text": …, "strategy": …}, …], …}

The authors' `ESConv.json` is one JSON list without a split::

    [{"problem_type": …, "dialog": [{"speaker": "seeker", "annotation": {"strategy": …}, "content": …}, …], …}, …]

Its split depends on a hash of the conversation's words alone: 70 % train, 15 % valid, 15 % test, as in the three files.
`FailedESConv.json` has the same layout (with speaker and listener as its speakers); its conversations failed their
survey, and it is read only if a user renames it to `ESConv.json`.

The seeker is the user, the supporter the assistant, the act is the strategy, the label the type of problem.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attune.corpora.splits import SHARES, text_hash
from attune.data.dialogue import SPLITS, Dialogue, Role, Turn, join_turns, normalise
from attune.runtime.errors import DataError
from attune.runtime.io import read_lines, read_text, require_utf8

CORPUS = "esconv"
WHOLE = "ESConv.json"
MISSING = "run stage `download`"
ROLES: dict[str, Role] = {
    "usr": "user",
    "seeker": "user",
    "speaker": "user",
    "sys": "assistant",
    "supporter": "assistant",
    "listener": "assistant",
}


class Layout(NamedTuple):
    """The key of a turn's text, and the key of the record with its strategy ("": the turn itself)."""

    text: str
    annotation: str


LINES = Layout("text", "")
LIST = Layout("content", "annotation")


def read(folder: Path) -> tuple[list[Dialogue], Counter[str]]:
    """Read the three files of `folder`, or its `ESConv.json` if it has none of the three.

    Returns:
        The dialogues in file order, and an empty counter, since this reader drops nothing.

    Raises:
        DataError: a file is missing, is no UTF-8 or no JSON, or a conversation does not fit the format.
    """
    dropped: Counter[str] = Counter()
    return list(stream(folder, dropped)), dropped


def stream(folder: Path, dropped: Counter[str]) -> Iterator[Dialogue]:
    """As `read`, one conversation at a time for the three files."""
    whole = folder / WHOLE
    if whole.exists() and not any((folder / f"{split}.txt").exists() for split in SPLITS):
        yield from _read_list(whole)
        return
    for split in SPLITS:
        yield from _read_lines(folder / f"{split}.txt", split)


def split_of(turns: Sequence[Turn]) -> str:
    """The split of a conversation of `ESConv.json`, from a hash of its words."""
    percent = text_hash(normalise(" ".join(turn.text for turn in turns))) % 100
    return SPLITS[sum(percent >= end for end in SHARES)]


def _read_lines(path: Path, split: str) -> Iterator[Dialogue]:
    for number, line in enumerate(read_lines(path, DataError, MISSING), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: no JSON: {error}") from None
        label, turns = _conversation(record, LINES, where)
        yield Dialogue(f"{split}/{number}", CORPUS, split, label, turns)


def _read_list(path: Path) -> list[Dialogue]:
    try:
        records = json.loads(read_text(path, DataError, MISSING))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON: {error}") from None
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of conversations, found {_shown(records)}")
    dialogues = []
    for number, record in enumerate(records, start=1):
        label, turns = _conversation(record, LIST, f"{path}: conversation {number}")
        split = split_of(turns)
        dialogues.append(Dialogue(f"{split}/{number}", CORPUS, split, label, turns))
    return dialogues


def _conversation(record: Any, layout: Layout, where: str) -> tuple[str, tuple[Turn, ...]]:
    """The label and the joined turns of a record."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with problem_type and dialog, found {_shown(record)}")
    label = _string(record, "problem_type", where)
    dialog = record.get("dialog")
    if not isinstance(dialog, list) or not dialog:
        raise DataError(f"{where}: dialog should be a list of turns, found {_shown(dialog)}")
    return label, join_turns(_turn(turn, layout, f"{where}, turn {i}") for i, turn in enumerate(dialog, start=1))


def _turn(turn: Any, layout: Layout, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise DataError(f"{where}: expected an object with speaker and {layout.text}, found {_shown(turn)}")
    role = ROLES.get(_string(turn, "speaker", where))
    if role is None:
        raise DataError(f"{where}: speaker {turn['speaker']!r} is none of {', '.join(ROLES)}")
    text = _string(turn, layout.text, where)
    return Turn(role, text, _strategy(turn, layout, where) if role == "assistant" else None)


def _strategy(turn: Mapping[str, Any], layout: Layout, where: str) -> str | None:
    """The strategy of a supporter's turn, or None if it has none."""
    notes = turn.get(layout.annotation, {}) if layout.annotation else turn
    if not isinstance(notes, dict):
        raise DataError(f"{where}: {layout.annotation} should be an object, found {_shown(notes)}")
    return None if notes.get("strategy") is None else _string(notes, "strategy", where)


def _string(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} should be a text, found {_shown(value)}")
    require_utf8(value, f"{where}: {key}", DataError)
    return value.strip()


def _shown(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, str | int | float) else type(value).__name__
