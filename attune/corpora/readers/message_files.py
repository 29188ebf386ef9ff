"""Files of chats to records: dictionaries of a dialogue's columns, each with its place for errors.

jsonl has an object a line, json a list of objects, parquet a row a dialogue. A csv (or csv.gz) has a row a dialogue,
whose turns are a list in JSON, or where no column holds such a list, a row a turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attune.corpora.readers.csv_rows import Row, differing, grouped, refuse
from attune.runtime.arrow_stream import read_batches
from attune.runtime.errors import DataError
from attune.runtime.io import parse_csv, read_gzip, read_header, read_lines, read_text

MISSING = "run stage `download`"
Record = tuple[str, Any]
"""Where a dialogue stands, such as `chats.jsonl:3`, and what is there."""


class Names(NamedTuple):
    """Names of columns: those that a list of turns may have, and those of the others."""

    turns: Sequence[str]
    id: str
    label: str
    split: str


# Files beside the chats that are not read.
BESIDE = ("licence", "license", "readme")


def data_files(folder: Path, file: str | None) -> list[Path]:
    """The files of a folder to read, in order of their names.

    Args:
        folder: of the corpus.
        file: of the folder; None: all but a licence, a readme and hidden files.

    Raises:
        DataError: there is none, or one is of no kind that is read.
    """
    if file is not None:
        found = [folder / file]
    elif folder.is_dir():
        found = sorted(path for path in folder.rglob("*") if path.is_file() and not _beside(path.relative_to(folder)))
    else:
        raise DataError(f"{folder} is missing: {MISSING}")
    if not found:
        raise DataError(f"{folder} holds no file of chats: put {', '.join(KINDS)} files there")
    for path in found:
        if kind_of(path) is None:
            raise DataError(
                f"{path}: a file of chats is one of {', '.join(KINDS)}; rename it, convert it or move it away"
            )
    return found


def read_file(path: Path, names: Names) -> Iterator[Record]:
    """The records of a file.

    Args:
        path: of a kind in `KINDS`.
        names: of the columns; a csv without any of `turns` has a row for each turn.

    Raises:
        DataError: the file is missing or damaged, or a line is no record; names the line or row.
    """
    kind = kind_of(path)
    assert kind is not None  # data_files
    return KINDS[kind](path, names)


def kind_of(path: Path) -> str | None:
    """The key of `KINDS` that the name ends with."""
    return next((kind for kind in KINDS if path.name.lower().endswith(kind)), None)


def _beside(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.suffix == ".md" or path.name.lower().startswith(BESIDE)


def _jsonl(path: Path, names: Names) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path, DataError, MISSING), start=1):
        if line.strip():
            yield f"{path}:{number}", _json(line, f"{path}:{number}")


def _json_list(path: Path, names: Names) -> Iterator[Record]:
    records = _json(read_text(path, DataError, MISSING), str(path))
    if not isinstance(records, list):
        raise DataError(
            f"{path}: expected a list of dialogues, found {type(records).__name__}: name it .jsonl if it has one a line"
        )
    for number, record in enumerate(records, start=1):
        yield f"{path}, row {number}", record


def _parquet(path: Path, names: Names) -> Iterator[Record]:
    import pyarrow as pa

    number = 0
    try:
        for table in read_batches(path):
            for record in table.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {MISSING}") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}, after row {number}: no whole Parquet file: {str(error).splitlines()[0]}") from None


def _csv(path: Path, names: Names) -> Iterator[Record]:
    compressed = path.name.lower().endswith(".gz")
    text = read_gzip(path, DataError, MISSING) if compressed else read_text(path, DataError, MISSING)
    rows = parse_csv(text, path, DataError)
    header = read_header(path, rows, (), DataError)
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path}:1: column {', '.join(twice)} is there twice")
    refuse(
        path,
        [
            (line, f"{len(values)} fields, expected {len(header)}: {values[0][:40]!r}")
            for line, values in rows[1:]
            if len(values) != len(header)
        ],
    )
    records = [Row(line, dict(zip(header, values, strict=True))) for line, values in rows[1:]]
    lists = [name for name in names.turns if name in header]
    if not lists:
        yield from _dialogues(path, header, records, names)
        return
    for line, fields in records:
        columns, where = _filled(fields), f"{path}:{line}"
        parsed = {name: _json(fields[name], f"{where}: column {name}") for name in lists if name in columns}
        yield where, columns | parsed


def _dialogues(path: Path, header: Sequence[str], rows: Sequence[Row], names: Names) -> Iterator[Record]:
    """The dialogues of a csv with a row for each turn: consecutive rows with one id."""
    if names.id not in header:
        raise DataError(
            f"{path}:1: found the columns {', '.join(header)[:200]}: a csv of chats has a column {names.turns[0]} (a "
            f"list in JSON), or a row for each turn with the columns {names.id}, role and content"
        )
    same = [name for name in (names.label, names.split, "quality") if name in header]
    for some in grouped(path, rows, names.id).values():
        refuse(path, differing(some, same))
        turns = {names.turns[0]: [_filled(row.fields) for row in some]}
        yield f"{path}:{some[0].line}", _filled(some[0].fields) | turns


def _filled(fields: dict[str, str]) -> dict[str, Any]:
    """The fields that say something: csv has no other form for nothing."""
    return {name: value for name, value in fields.items() if value.strip()}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON: {error}") from None


KINDS: dict[str, Callable[[Path, Names], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json_list,
    ".parquet": _parquet,
    ".csv": _csv,
    ".csv.gz": _csv,
}
"""The reader of each kind of file, by the end of its name."""
