"""Rows of a csv file with a check of every field; one error lists all bad rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from attune.runtime.errors import DataError
from attune.runtime.io import read_csv, read_header, wrong_length

# Bad rows that an error lists.
SHOWN = 20
# Characters of a listed problem; a field can hold a whole file.
WIDTH = 300
# Digits of a number, such as a position.
DIGITS = 18


class Row(NamedTuple):
    """A row: the line that it starts on, and its fields by column, with runs of white space as one space."""

    line: int
    fields: dict[str, str]


Check = Callable[[dict[str, str]], str | None]


def read_rows(path: Path, columns: Sequence[str], check: Check, optional: Sequence[str] | None = None) -> list[Row]:
    """Read a csv file with a header; its other columns are kept.

    Args:
        path: UTF-8, with or without a byte order mark.
        columns: required columns, in any order.
        check: the problem of a row's fields, or None.
        optional: further columns that are allowed; None: any.

    Raises:
        DataError: the file is missing or not UTF-8, a column is missing, not allowed or repeated, or rows are bad; it
            lists the first `SHOWN` bad rows by line.
    """
    table = read_csv(path, DataError, "run stage `download`")
    header = read_header(path, table, columns, DataError)
    if optional is not None:
        _refuse_others(path, header, [*columns, *optional])
    rows, problems = [], []
    for line, values in table[1:]:
        wrong = wrong_length(values, header)
        fields = dict(zip(header, (" ".join(value.split()) for value in values), strict=False))
        if problem := wrong or check(fields):
            problems.append((line, problem))
        rows.append(Row(line, fields))
    refuse(path, problems)
    return rows


def refuse(path: Path, problems: Sequence[tuple[int, str]]) -> None:
    """Raise a `DataError` that lists the problems by line, if there are any."""
    if problems:
        more = [f"… and {len(problems) - SHOWN} more bad rows"] if len(problems) > SHOWN else []
        raise DataError("\n".join([*(f"{path}:{line}: {text[:WIDTH]}" for line, text in problems[:SHOWN]), *more]))


def grouped(path: Path, rows: Sequence[Row], column: str) -> dict[str, list[Row]]:
    """The rows by their value in a column, in order of the file.

    Raises:
        DataError: the rows of a value are not consecutive.
    """
    groups: dict[str, list[Row]] = {}
    problems = []
    for value, some in groupby(rows, key=lambda row: row.fields[column]):
        together = list(some)
        if value in groups:
            problems.append((together[0].line, f"the rows of {column} {value!r} are not together"))
        groups.setdefault(value, []).extend(together)
    refuse(path, problems)
    return groups


def differing(rows: Sequence[Row], columns: Sequence[str]) -> list[tuple[int, str]]:
    """A problem for each row that differs from the first row in one of the columns."""
    first = rows[0]
    return [
        (row.line, f"{name} {row.fields.get(name)!r}, but {first.fields.get(name)!r} in line {first.line}")
        for row in rows
        for name in columns
        if row.fields.get(name) != first.fields.get(name)
    ]


def one_of(fields: dict[str, str], column: str, allowed: Sequence[str]) -> str | None:
    """The problem if a field is none of the allowed values."""
    value = fields[column]
    return None if value in allowed else f"{column} {value!r} is none of {', '.join(map(repr, allowed))}"


def first_problem(*problems: str | None) -> str | None:
    """The first problem that is not None."""
    return next((problem for problem in problems if problem), None)


def empty(fields: dict[str, str], columns: Sequence[str]) -> str | None:
    """The problem if one of the columns is empty."""
    return next((f"empty {name}" for name in columns if not fields[name]), None)


def number(fields: dict[str, str], column: str) -> str | None:
    """The problem if a field is not a whole number of at least 0."""
    value = fields[column]
    return None if is_number(value) else f"{column} {value[:40]!r} is not a whole number of at least 0"


def is_number(text: str) -> bool:
    """True for a whole number of at least 0 with at most `DIGITS` digits."""
    return text.isascii() and text.isdecimal() and len(text) <= DIGITS


def _refuse_others(path: Path, header: Sequence[str], known: Sequence[str]) -> None:
    """Check that all columns are known and none is repeated; a misspelt optional column would be ignored silently.

    Raises:
        DataError: naming the unknown columns.
    """
    if others := [name for name in header if name not in known]:
        raise DataError(f"{path}:1: unknown column {', '.join(map(repr, others))}: the columns are {', '.join(known)}")
    if len(set(header)) < len(header):
        raise DataError(f"{path}:1: repeated column: {', '.join(header)}")
