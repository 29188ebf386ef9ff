"""Replies that this project did not generate: reading a file of them, and finding the test examples that they answer.

Such a file is scored by `python -m attune score`, and it is a variant beside the trained ones where `variants` of
`params.yaml` names it as a model.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attune.data.dialogue import Example, Turn, from_first_user, join_turns, normalise
from attune.runtime.errors import DataError
from attune.runtime.records import read_rows

COLUMNS = ("reply", "context", "reference", "label", "id")
"""Of these only `reply` must be there."""
ROLES = ("system", "user", "assistant")
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
        path: jsonl, json, csv or parquet. reply: a text, which may be empty. context: chat messages, `{"role": …,
            "content": …}` (in csv as JSON), or a text, which is one user turn. reference, label: text or empty. id: a
            text or an integer, different in every row.
        names: of `COLUMNS` that may have another name in the file to that name.

    Returns:
        The rows, and counts of what was left out of contexts: system messages, and assistant turns before the first
        user turn. Consecutive turns of one role are joined.

    Raises:
        DataError: names file, line or row, and column.
    """
    records = read_rows(path, DataError, MISSING)
    first, given = records[0][1], names or {}
    # Of several files some may have the usual name.
    columns = {
        name: name if name in first and given.get(name) not in first else given.get(name, name) for name in COLUMNS
    }
    wanted = {"reply", *given, *(name for name, column in columns.items() if column in first)}
    dropped: Counter[str] = Counter()
    rows, places = [], dict[str, str]()
    for where, values in records:
        # The others may be absent, as they may be empty; but not in every row, if they were named.
        needed = wanted if values is first else wanted & {"reply", "context", "id"}
        if lost := [columns[name] for name in COLUMNS if name in needed and columns[name] not in values]:
            found = ", ".join(map(str, values))[:200] or "nothing"
            raise DataError(f"{where}: no column {lost[0]}; found {found} (--column of `attune score` names another)")
        row = _row(where, {name: values.get(column) for name, column in columns.items()}, wanted, dropped)
        if row.id is not None and places.setdefault(row.id, where) != where:
            raise DataError(f"{where}: id {row.id!r} is that of {places[row.id]}, too")
        rows.append(row)
    return rows, dropped


def _row(where: str, values: Mapping[str, Any], wanted: set[str], dropped: Counter[str]) -> OwnReply:
    reply = values["reply"]
    if not isinstance(reply, str):
        raise DataError(f"{where}: reply = {str(reply)[:40]!r} is no text")
    texts = {name: _optional(values[name], name, where) for name in ("reference", "label")}
    context = _context(values["context"], where, dropped) if "context" in wanted else None
    row = OwnReply(where, reply, context, **texts, id=_id(values["id"], where) if "id" in wanted else None)
    try:
        json.dumps([asdict(row)], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: half of a surrogate pair, such as \\ud83d alone, is no text") from None
    return row


def _optional(value: object, name: str, where: str) -> str | None:
    """A text, or None for an empty cell, which pandas may have written as NaN."""
    # NaN is unequal to itself.
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} = {str(value)[:40]!r} is no text")
    return value


def _id(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"{where}: id = {str(value)[:40]!r} is neither a text nor an integer")
    return str(value)


def _context(value: object, where: str, dropped: Counter[str]) -> tuple[Turn, ...]:
    if isinstance(value, str) and MESSAGES.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as problem:
            raise DataError(
                f"{where}: context begins as a list of messages, but is no valid JSON ({problem}): write it by "
                "json.dumps, not by str"
            ) from None
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: context is empty")
        return (Turn("user", value),)
    if not isinstance(value, list):
        raise DataError(f"{where}: context = {str(value)[:40]!r} is neither a text nor a list of chat messages")
    turns = [_turn(message, f"{where}: message {number} of context") for number, message in enumerate(value, start=1)]
    spoken = join_turns(turn for turn in turns if turn.role != "system")
    context = from_first_user(spoken)
    if not context or context[-1].role != "user":
        raise DataError(f"{where}: context does not end with a user turn, which the reply answers")
    dropped["system messages"] += sum(turn.role == "system" for turn in turns)
    dropped["opening assistant turns"] += len(spoken) - len(context)
    return context


def _turn(message: object, where: str) -> Turn:
    """A chat message, with its text in `content`, or in `text` as in `data/replies`."""
    if not isinstance(message, dict):
        raise DataError(f'{where}: {str(message)[:40]!r} is no message {{"role": …, "content": …}}')
    role, text = message.get("role"), message.get("content", message.get("text"))
    if role not in ROLES:
        raise DataError(f"{where}: role {str(role)[:40]!r} is none of {', '.join(ROLES)}")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: content = {str(text)[:40]!r} is no text")
    return Turn(role, text)


def context_key(context: Sequence[Turn]) -> str:
    """What is equal for equal contexts: the words of all turns, without case, punctuation and spacing."""
    text = " ".join(turn.text for turn in context)
    return normalise(text) or text.strip()


def match(
    rows: Sequence[OwnReply], examples: Sequence[Example], subset: Sequence[Example], path: Path
) -> tuple[dict[str, OwnReply], str]:
    """The replies to test examples: by the example's id, other rows by an equal context.

    Args:
        rows: of `read`.
        examples: of the test split.
        subset: of them, those that every variant answers.
        path: of the file, for what is said.

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
                f"{row.where}: the context is not that of test example {row.id}: mend it, or leave the column id out"
            )
        found[str(row.id)] = row
    for row in (row for row in rows if row.id not in by_id and row.context is not None):
        same = by_context.get(context_key(row.context or ()), [])
        free = next((name for name in same if name not in found), None)
        if same and free is None:
            before = found[same[0]].where
            raise DataError(f"{row.where}: a second reply to the context of test example {same[0]}, as {before}")
        if free is not None:
            found[free] = row
    wanted = {example.id for example in subset}
    used = {name: row for name, row in found.items() if name in wanted}
    said = f"{path}: replies to {len(used)} of {len(subset)} test examples"
    if unknown := len(rows) - len(found):
        said += f"; {unknown} rows are of no test example (neither id nor context is equal)"
    if beyond := len(found) - len(used):
        said += f"; {beyond} rows are of test examples beyond generate.limit"
    if not used:
        raise DataError(f"{said}: the replies must be to the contexts of data/dialogues/test.parquet")
    return used, said


def records(replies: Mapping[str, OwnReply], subset: Sequence[Example]) -> list[dict[str, Any]]:
    """The rows of `data/replies/<variant>.parquet`, as those of `answer.answer`; no log-probabilities without a model.

    Args:
        replies: of `match`.
        subset: examples in the order of the rows; one without a reply has no row.
    """
    return [
        {
            "id": example.id,
            "label": example.label,
            "context": [asdict(turn) for turn in example.context],
            "reference": example.target,
            "reply": replies[example.id].reply.strip(),
            "rejected": None,
            "reference_logp": None,
            "rejected_logp": None,
        }
        for example in subset
        if example.id in replies
    ]


def left_out(dropped: Counter[str]) -> str:
    """What `read` left out of contexts as a sentence; empty if it was nothing."""
    counts = [f"{count} {name}" for name, count in dropped.items() if count]
    return f"left out of contexts: {', '.join(counts)}" if counts else ""
