"""Rows of jsonl, json, csv and parquet files that other programs wrote, each with its place in the file for errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attune.runtime.errors import UserError
from attune.runtime.io import read_csv, read_header, read_lines, read_text

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
Record = tuple[str, dict[str, Any]]
"""The place of a row, `file:line` or `file: row n` (from 1), and its values by column."""


def read_rows(path: Path, error: type[UserError], missing: str) -> list[Record]:
    """The rows of a file; its ending says which of `FORMATS` it has.

    json is a list of objects. The first row of csv names the columns; its values are texts. Blank lines are left out.

    Args:
        path: of the file.
        error: the class to raise.
        missing: what to do if there is no such file.

    Raises:
        UserError: `error`, with file and line or row: the file is missing, has another ending, is broken or empty, a
            row is no object or has another number of fields than the header, or a column is there twice.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise error(f"{path}: the ending is none of {', '.join(FORMATS)}, which say how the file is read")
    rows = list(readers[path.suffix.lower()](path, error, missing))
    if not rows:
        raise error(f"{path}: there are no rows")
    return rows


def _jsonl(path: Path, error: type[UserError], missing: str) -> Iterator[Record]:
    for line, text in enumerate(read_lines(path, error, missing), start=1):
        if text.strip():
            where = f"{path}:{line}"
            yield where, _object(_parsed(text, where, error), where, error)


def _json(path: Path, error: type[UserError], missing: str) -> Iterator[Record]:
    values = _parsed(read_text(path, error, missing), str(path), error)
    if not isinstance(values, list):
        raise error(f"{path}: a {type(values).__name__}, not a list of objects; with an object a line it is .jsonl")
    for number, value in enumerate(values, start=1):
        where = f"{path}: row {number}"
        yield where, _object(value, where, error)


def _parsed(text: str, where: str, error: type[UserError]) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object; `json` alone would keep the last of two equal keys."""
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise error(f"{where}: the key {twice!r} is there twice")
        return values

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as problem:
        at = f"{where}:{problem.lineno}" if "\n" in text.strip() else where
        raise error(f"{at}: no valid JSON: {problem.msg} at character {problem.colno}") from None
    # A number with too many digits, brackets that are too deep.
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: no valid JSON: {problem}") from None


def _object(value: Any, where: str, error: type[UserError]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise error(f"{where}: {str(value)[:40]!r} is no JSON object, {{column: value, …}}")
    return value


def _csv(path: Path, error: type[UserError], missing: str) -> Iterator[Record]:
    rows = read_csv(path, error, missing)
    header = read_header(path, rows, (), error)
    read_header(path, rows, header, error)
    for line, values in rows[1:]:
        where = f"{path}:{line}"
        if len(values) != len(header):
            raise error(f"{where}: {len(values)} fields, but the header has {len(header)}: {values[0][:40]!r}")
        yield where, dict(zip(header, values, strict=True))


def _parquet(path: Path, error: type[UserError], missing: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise error(f"{path} is {'a folder: name a file' if path.is_dir() else f'missing: {missing}'}")
    try:
        # Not read_table, which would take columns out of the names of folders.
        table = pq.ParquetFile(path).read()
        _distinct(table.column_names, path, error)
        rows: Sequence[dict[str, Any]] = table.to_pylist()
    # A text that is no UTF-8 is a ValueError.
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise error(f"{path} is no valid parquet file: {problem}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row


def _distinct(names: Sequence[str], path: Path, error: type[UserError]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise error(f"{path}: column {twice[0]} is there twice")
