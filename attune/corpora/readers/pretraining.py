"""Dialogues for pretraining a small base model: `dialogues.jsonl`, a JSON object on each line.

    {"source": …, "turns": [text, …]}

The first turn is the user's, and the roles alternate; other keys are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from attune.data.dialogue import Role, Turn
from attune.runtime.errors import DataError
from attune.runtime.io import read_lines, require_utf8

FILE = "dialogues.jsonl"
ROLES: tuple[Role, Role] = ("user", "assistant")


def read_turns(folder: Path) -> Iterator[tuple[int, tuple[Turn, ...]]]:
    """The line and the turns of each dialogue; blank lines are skipped.

    Raises:
        DataError: the file is missing or not UTF-8, has no dialogue, or a line is not one.
    """
    path = folder / FILE
    empty = True
    for number, line in enumerate(read_lines(path, DataError, "tiny.corpus names its folder"), start=1):
        if line.strip():
            empty = False
            yield number, _turns(line, f"{path}:{number}")
    if empty:
        raise DataError(f"{path} holds no dialogues")


def _turns(line: str, where: str) -> tuple[Turn, ...]:
    expected = f'{where}: expected {{"turns": [text, …]}}'
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{expected}: no JSON: {error}") from None
    texts = record.get("turns") if isinstance(record, dict) else None
    if not isinstance(texts, list) or not texts:
        raise DataError(f"{expected}, found {line[:40]!r}")
    for i, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{expected}: turn {i} is no text: {str(text)[:40]!r}")
        require_utf8(text, f"{where}: turn {i}", DataError)
    return tuple(Turn(ROLES[i % 2], text) for i, text in enumerate(texts))
