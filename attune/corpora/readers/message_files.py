"""Files of chats to records: dictionaries of a dialogue's columns, each with its place for errors.

A row is a dialogue. In a csv (or csv.gz) its turns are a list in JSON, or where no column holds such a list, a row is a
turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attune.corpora.readers.csv_rows import Row, differing, grouped, refuse
from attune.runtime.errors import DataError
from attune.runtime.io import read_records
from attune.runtime.records import CELL, Record, kind_of, parse_json, read_rows

CSV = (".csv", ".csv.gz")
KINDS = (".jsonl", ".json", ".parquet", *CSV)
MISSING = "run stage `download`"


class Names(NamedTuple):
    """Names of columns: those that a list of turns may have, and those of the others."""

    turns: Sequence[str]
    id: str
    label: str
    split: str


# How the names of other files in the folder begin.
OTHERS = ("licence", "license", "readme")


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
        found = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_other(path.relative_to(folder)))
    else:
        raise DataError(f"{folder} is missing: {MISSING}")
    if not found:
        raise DataError(f"{folder} holds no file of chats: put {', '.join(KINDS)} files there")
    for path in found:
        if kind_of(path, KINDS) is None:
            raise DataError(
                f"{path}: a file of chats is one of {', '.join(KINDS)}; rename it, convert it or move it away"
            )
    return found


def read_file(path: Path, names: Names) -> Iterator[Record]:
    """The records of a file.

    Args:
        path: of a kind of `data_files`.
        names: of the columns; a csv without any of `turns` has a row for each turn.

    Raises:
        DataError: the file is missing or damaged, or a line is no record; names the line or row.
    """
    return _csv(path, names) if kind_of(path, CSV) else read_rows(path, KINDS, DataError, MISSING)


def _is_other(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.suffix == ".md" or path.name.lower().startswith(OTHERS)


def _csv(path: Path, names: Names) -> Iterator[Record]:
    records = [Row(*record) for record in read_records(path, None, DataError, MISSING)]
    header = list(records[0].fields) if records else []
    lists = [name for name in names.turns if name in header]
    if not lists:
        yield from _dialogues(path, header, records, names)
        return
    for line, fields in records:
        columns, where = _filled(fields), f"{path}:{line}"
        parsed = {
            name: parse_json(fields[name], f"{where}, column {name}", DataError, CELL)
            for name in lists
            if name in columns
        }
        yield where, columns | parsed


def _dialogues(path: Path, header: Sequence[str], rows: Sequence[Row], names: Names) -> Iterator[Record]:
    """The dialogues of a csv with a row for each turn: consecutive rows with one id."""
    if names.id not in header:
        raise DataError(
            f"{path}:1: found the columns {', '.join(header)[:200] or 'nothing'}: a csv of chats has a column "
            f"{names.turns[0]} (a list in JSON), or a row for each turn with the columns {names.id}, role and content"
        )
    same = [name for name in (names.label, names.split, "quality") if name in header]
    for some in grouped(path, rows, names.id).values():
        refuse(path, differing(some, same))
        turns = {names.turns[0]: [_filled(row.fields) for row in some]}
        yield f"{path}:{some[0].line}", _filled(some[0].fields) | turns


def _filled(fields: dict[str, str]) -> dict[str, Any]:
    """The fields that say something: csv has no other form for nothing."""
    return {name: value for name, value in fields.items() if value.strip()}
