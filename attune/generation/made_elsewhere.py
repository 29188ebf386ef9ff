"""Replies that this project did not generate: reading a file of them, and finding the test examples that they answer.

Such a file is scored by `python -m attune score`, and it is a variant beside the trained ones where `variants` of
`params.yaml` names it as a model.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from attune.config.schema import REPLY_FILES
from attune.data.chat import read_turn, text_or_number
from attune.data.dialogue import Example, Turn, context_key, from_first_user, join_turns
from attune.generation.answer import record
from attune.runtime.errors import DataError
from attune.runtime.io import require_utf8
from attune.runtime.records import CELL, parse_json, read_rows, shown

COLUMNS = ("reply", "context", "reference", "label", "id")
"""Of these only `reply` must be there."""
MISSING = "name a file of replies, with a column reply"
NO_MODEL = "made elsewhere"
# How a cell of text begins that holds chat messages.
MESSAGES = re.compile(r"\s*\[\s*\{")


@dataclass(frozen=True)
class OwnReply:
    """A row of a file of replies: its place in the file, the reply, and what else the file has."""

    where: str
    reply: str
    context: tuple[Turn, ...] | None = None
    reference: str | None = None
    label: str | None = None
    id: str | None = None


def read(path: Path, names: Mapping[str, str] | None = None) -> tuple[list[OwnReply], Counter[str]]:
    """Read and check a file of replies.

    Args:
        path: jsonl, json, csv or parquet. reply: a text, which may be empty. context: chat messages of `read_turn` (in
            csv as JSON), or a text, which is one user turn. reference, label: text or empty. id: a text or a whole
            number, different in every row.
        names: of `COLUMNS` that may have another name in the file to that name.

    Returns:
        The rows, and counts of what was left out of contexts: system messages, and assistant turns before the first
        user turn. Consecutive turns of one role are joined.

    Raises:
        DataError: names file, line or row, and column.
    """
    records = read_rows(path, REPLY_FILES, DataError, MISSING)
    start = next(records, None)
    if start is None:
        raise DataError(f"{path}: there are no rows")
    first, given = start[1], names or {}
    # Of several files some may have the usual name.
    columns = {
        name: name if name in first and given.get(name) not in first else given.get(name, name) for name in COLUMNS
    }
    wanted = {"reply", *given, *(name for name, column in columns.items() if column in first)}
    dropped: Counter[str] = Counter()
    rows, places = [], dict[str, str]()
    for where, values in chain([start], records):
        # The others may be absent, as they may be empty; but not in every row, if they were named.
        needed = wanted if values is first else wanted & {"reply", "context", "id"}
        if lost := [columns[name] for name in COLUMNS if name in needed and columns[name] not in values]:
            found = ", ".join(map(str, values))[:200] or "nothing"
            raise DataError(f"{where}: no column {lost[0]}; found {found} (--column of `attune score` names another)")
        row = _row(where, {name: values.get(column) for name, column in columns.items()}, wanted, dropped)
        if row.id is not None and places.setdefault(row.id, where) != where:
            raise DataError(f"{where}: id {row.id!r} is also that of {places[row.id]}")
        rows.append(row)
    return rows, dropped


def _row(where: str, values: Mapping[str, Any], wanted: set[str], dropped: Counter[str]) -> OwnReply:
    reply = values["reply"]
    if not isinstance(reply, str):
        raise DataError(f"{where}: reply should be a text, found {shown(reply)}")
    texts = {name: _optional(values[name], name, where) for name in ("reference", "label")}
    context = _context(values["context"], where, dropped) if "context" in wanted else None
    name = text_or_number(values["id"], f"{where}: id", DataError) if "id" in wanted else None
    for text in filter(None, (reply, *texts.values())):
        require_utf8(text, where, DataError)
    return OwnReply(where, reply, context, **texts, id=name)


def _optional(value: object, name: str, where: str) -> str | None:
    """A text, or None for an empty cell, which pandas may have written as NaN."""
    # NaN is unequal to itself.
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} should be a text, found {shown(value)}")
    return value


def _context(value: object, where: str, dropped: Counter[str]) -> tuple[Turn, ...]:
    if isinstance(value, str) and MESSAGES.match(value):
        value = parse_json(value, f"{where}, column context", DataError, CELL)
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise DataError(f"{where}: context should be a text or a list of chat messages, found {shown(value)}")
    turns = [
        read_turn(message, f"{where}: message {number} of context", DataError)
        for number, message in enumerate(value, start=1)
    ]
    spoken = join_turns(turn for turn in turns if turn.role != "system")
    context = from_first_user(spoken)
    if not context or context[-1].role != "user":
        raise DataError(f"{where}: context does not end with a user turn, which the reply answers")
    dropped["system messages"] += sum(turn.role == "system" for turn in turns)
    dropped["opening assistant turns"] += len(spoken) - len(context)
    return context


def match(
    rows: Sequence[OwnReply], examples: Sequence[Example], subset: Sequence[Example], path: Path, split: str
) -> tuple[dict[str, OwnReply], str]:
    """The replies to held-out examples: by the example's id, other rows by an equal context.

    Args:
        rows: of `read`.
        examples: of the split.
        subset: of them, those that every variant answers.
        path: of the file, for what is said.
        split: test or valid, for the same.

    Returns:
        Id of an example of `subset` to its reply, and a sentence that counts what has none and what was not used.

    Raises:
        DataError: no row is a reply to an example of `subset`, two are to the same, or a row has the id of an example
            and another context.
    """
    by_id = {example.id: example for example in examples}
    by_context = defaultdict[str, list[str]](list)
    for name in sorted(by_id):
        by_context[context_key(by_id[name].context)].append(name)
    found: dict[str, OwnReply] = {}
    for row in (row for row in rows if row.id in by_id):
        if row.context is not None and context_key(row.context) != context_key(by_id[str(row.id)].context):
            raise DataError(
                f"{row.where}: the context is not that of {split} example {row.id}: mend it, or leave the column id out"
            )
        found[str(row.id)] = row
    for row in (row for row in rows if row.id not in by_id and row.context is not None):
        same = by_context.get(context_key(row.context or ()), [])
        free = next((name for name in same if name not in found), None)
        if same and free is None:
            before = found[same[0]].where
            raise DataError(f"{row.where}: a second reply to the context of {split} example {same[0]}, as {before}")
        if free is not None:
            found[free] = row
    wanted = {example.id for example in subset}
    used = {name: row for name, row in found.items() if name in wanted}
    said = f"{path}: replies to {len(used)} of {len(subset)} {split} examples"
    if unknown := len(rows) - len(found):
        said += f"; {unknown} rows are of no {split} example (neither id nor context is equal)"
    if beyond := len(found) - len(used):
        said += f"; {beyond} rows are of {split} examples beyond generate.limit"
    if not used:
        raise DataError(f"{said}: the replies must be to the contexts of data/dialogues/{split}.parquet")
    return used, said


def records(replies: Mapping[str, OwnReply], subset: Sequence[Example]) -> list[dict[str, Any]]:
    """The rows of `data/replies/<variant>.parquet`, as those of `answer`; no log-probabilities without a model.

    Args:
        replies: of `match`.
        subset: examples in the order of the rows; one without a reply has no row.
    """
    return [record(example, replies[example.id].reply.strip()) for example in subset if example.id in replies]


def left_out(dropped: Counter[str]) -> str:
    """What `read` left out of contexts as a sentence; empty if it was nothing."""
    counts = [f"{count} {name}" for name, count in dropped.items() if count]
    return f"left out of contexts: {', '.join(counts)}" if counts else ""
