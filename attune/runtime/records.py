"""Rows of jsonl, json, parquet and csv files that other programs wrote, each with its place in the file for errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attune.runtime.arrow_stream import read_batches
from attune.runtime.errors import UserError, reason
from attune.runtime.io import read_lines, read_records, read_text

Record = tuple[str, dict[str, Any]]
"""The place of a row, `file:line` or `file, row n` (from 1), and its values by column."""
Error = type[UserError]

# Rows of a parquet file that are in memory at a time.
BATCH = 1024
CELL = "; write it by json.dumps, not by str"
"""Advice of `parse_json` for a text in a column."""


def read_rows(path: Path, kinds: Sequence[str], error: Error, missing: str) -> Iterator[Record]:
    """The rows of a file, one at a time; a json or csv file is in memory as a whole.

    jsonl has an object a line, json a list of objects. The first row of csv names the columns; its values are texts.
    Blank lines are left out.

    Args:
        path: of the file.
        kinds: keys of `KINDS` that are read here.
        error: the class to raise.
        missing: what to do if there is no such file.

    Raises:
        UserError: `error`, with file and line or row: the file is missing, of another kind or broken, a row is no
            object or has another number of fields than the header, or a key or column is there twice.
    """
    kind = kind_of(path, kinds)
    if kind is None:
        raise error(f"{path}: the ending is none of {', '.join(kinds)}, which say how the file is read")
    yield from KINDS[kind](path, error, missing)


def kind_of(path: Path, kinds: Sequence[str]) -> str | None:
    """The kind that the name ends with, in upper or lower case."""
    return next((kind for kind in kinds if path.name.lower().endswith(kind)), None)


def parse_json(text: str, where: str, error: Error, advice: str = "") -> Any:
    """The value of a JSON text.

    Args:
        text: of the value.
        where: it stands.
        error: the class to raise.
        advice: to end the error with.

    Raises:
        UserError: `error`: it is no JSON, or an object has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object; `json` alone would keep the last of two equal keys."""
        values = dict(pairs)
        if len(values) < len(pairs):
            raise error(f"{where}: the key {twice([name for name, _ in pairs])[0]!r} is there twice")
        return values

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as problem:
        at = f"{where}:{problem.lineno}" if "\n" in text.strip() else where
        raise error(f"{at}: no valid JSON: {problem.msg} at character {problem.colno}{advice}") from None
    # A number with too many digits, brackets that are too deep.
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: no valid JSON: {reason(problem)}{advice}") from None


def shown(value: Any) -> str:
    """A value in an error, cut."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _jsonl(path: Path, error: Error, missing: str) -> Iterator[Record]:
    for line, text in enumerate(read_lines(path, error, missing), start=1):
        if text.strip():
            where = f"{path}:{line}"
            yield where, _object(parse_json(text, where, error), where, error)


def _json(path: Path, error: Error, missing: str) -> Iterator[Record]:
    advice = "; with an object a line it is .jsonl"
    values = parse_json(read_text(path, error, missing), str(path), error, advice)
    if not isinstance(values, list):
        raise error(f"{path}: {shown(values)} is no list of objects{advice}")
    for number, value in enumerate(values, start=1):
        where = f"{path}, row {number}"
        yield where, _object(value, where, error)


def _object(value: Any, where: str, error: Error) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise error(f"{where}: {shown(value)} is no JSON object, {{column: value, …}}")
    return value


def _parquet(path: Path, error: Error, missing: str) -> Iterator[Record]:
    import pyarrow as pa

    if not path.is_file():
        raise error(f"{path} is {'a folder: name a file' if path.is_dir() else f'missing: {missing}'}")
    number = 0
    try:
        for table in read_batches(path, BATCH):
            if names := twice(table.column_names):
                raise error(f"{path}: column {names[0]} is there twice")
            for row in table.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    # A text that is no UTF-8 is a ValueError.
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise error(f"{path} is no valid parquet file after row {number}: {reason(problem)}") from None


def _csv(path: Path, error: Error, missing: str) -> Iterator[Record]:
    for line, values in read_records(path, None, error, missing):
        yield f"{path}:{line}", values


def twice(names: Sequence[str]) -> list[str]:
    """The names that occur more than once."""
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


KINDS: dict[str, Callable[[Path, Error, str], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".csv.gz": _csv,
}
"""The reader of each kind of file, by the end of its name."""
