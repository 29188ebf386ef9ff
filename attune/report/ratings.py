"""Blind comparisons of the replies of two variants: the items that raters see, and their answers in SQLite and csv.

A rater sees the replies of both variants to a context without their names, in an order that is random for each rater
and context. An answer is stored with a hash of both replies, so that it no longer counts once a new training run has
changed the replies.
"""

from __future__ import annotations

import csv
import hashlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from attune.data.keyed import uniform
from attune.runtime.errors import DataError
from attune.runtime.io import csv_text

Choice = Literal["a", "b", "tie"]
CHOICES: tuple[Choice, ...] = ("a", "b", "tie")
COMMON = 20
"""Contexts that every rater sees before the others: agreement needs contexts that several have answered."""
COLUMNS = ("rater", "example", "variant_a", "variant_b", "choice", "reason", "first", "replies", "time")
# Seconds that a writer waits for other writers.
PATIENCE = 30.0


@dataclass(frozen=True)
class Item:
    """A context with the replies of both variants."""

    example: str
    context: tuple[tuple[str, str], ...]
    reply_a: str
    reply_b: str

    @property
    def replies(self) -> str:
        """A hash of both replies."""
        return hashlib.blake2b(f"{self.reply_a}\x1f{self.reply_b}".encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Answer:
    """The answer of a rater to an item; `first` is the variant whose reply was shown first."""

    rater: str
    example: str
    variant_a: str
    variant_b: str
    choice: Choice
    reason: str
    first: Literal["a", "b"]
    replies: str
    time: str


def items(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The items to compare: the examples that both variants answered differently.

    Args:
        a: rows of a variant's replies.
        b: those of the other variant.
    """
    other = {row["id"]: row["reply"] for row in b}
    return [
        Item(row["id"], tuple((turn["role"], turn["text"]) for turn in row["context"]), row["reply"], other[row["id"]])
        for row in a
        if row["id"] in other and row["reply"] != other[row["id"]]
    ]


def drawn(found: Iterable[Item], seed: int, limit: int | None = None) -> list[Item]:
    """The items, or `limit` of them, in a random order that is the same for all raters; the first are common."""
    ordered = sorted(found, key=lambda item: (uniform(2**64, seed, "common", item.example), item.example))
    return ordered[:limit]


def order(common_first: Sequence[Item], rater: str, seed: int) -> list[Item]:
    """The items in the order in which a rater sees them: the common ones, then the others, each in the rater's own.

    Args:
        common_first: of `drawn`.
        rater: the name.
        seed: of the order.
    """

    def place(item: Item) -> tuple[int, str]:
        return uniform(2**64, seed, "rating", rater, item.example), item.example

    return [*sorted(common_first[:COMMON], key=place), *sorted(common_first[COMMON:], key=place)]


def first(item: Item, rater: str, seed: int) -> Literal["a", "b"]:
    """The variant whose reply the rater sees first; random for each rater and item."""
    return "b" if uniform(2, seed, "first", rater, item.example) else "a"


class Store:
    """The answers in a SQLite file; every answer is on disk before `keep` returns.

    Threads share one connection under a lock: SQLite's busy handler starves some of many writers, and with a connection
    per answer SQLite would checkpoint the write-ahead log each time that the last connection closes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)
        except (OSError, sqlite3.DatabaseError) as error:
            raise DataError(f"{path} cannot be opened ({error})") from None
        with self._open() as base:
            # WAL: readers, also of other processes, do not wait for the writer. FULL: sync before commit returns.
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = FULL")
            base.execute(
                f"CREATE TABLE IF NOT EXISTS answers ({', '.join(f'{name} TEXT NOT NULL' for name in COLUMNS)}, "
                "PRIMARY KEY (rater, example, variant_a, variant_b, replies))"
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection, locked for this thread, in a transaction."""
        try:
            with self._turn, self._base as base:
                yield base
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path} cannot be read or written ({error})") from None

    def keep(self, answer: Answer) -> None:
        """Store an answer; it replaces an earlier answer of the same rater to the same item.

        Raises:
            DataError: the choice is not a, b or tie, or the file cannot be written.
        """
        if answer.choice not in CHOICES:
            raise DataError(f"choice {answer.choice!r} is none of {', '.join(CHOICES)}")
        marks = ", ".join("?" * len(COLUMNS))
        with self._open() as base:
            base.execute(f"INSERT OR REPLACE INTO answers VALUES ({marks})", [getattr(answer, c) for c in COLUMNS])

    def withdraw(self, rater: str, item: Item, names: tuple[str, str]) -> bool:
        """Remove a rater's answer to an item; whether there was one.

        Raises:
            DataError: the file cannot be written.
        """
        key = (rater, item.example, *names, item.replies)
        with self._open() as base:
            done = base.execute(
                "DELETE FROM answers WHERE (rater, example, variant_a, variant_b, replies) = (?, ?, ?, ?, ?)", key
            )
            return done.rowcount == 1

    def answers(self, rater: str | None = None) -> list[Answer]:
        """All answers, or those of one rater, sorted by rater and example."""
        names = ", ".join(COLUMNS)
        # By the first column of the key: the page asks for a rater's answers before each item.
        which, values = ("", ()) if rater is None else ("WHERE rater = ?", (rater,))
        with self._open() as base:
            rows = base.execute(f"SELECT {names} FROM answers {which} ORDER BY {names}", values)
            return [Answer(*row) for row in rows]


def as_csv(answers: Sequence[Answer]) -> str:
    """The answers as csv, one per line."""
    return csv_text(COLUMNS, ([getattr(answer, name) for name in COLUMNS] for answer in answers))


def read_csv(path: Path) -> list[Answer]:
    """The answers in a csv that `as_csv` wrote; none if the file does not exist.

    Raises:
        DataError: a column or a value is invalid; names file, line and value.
    """
    if not path.exists():
        return []
    # A spreadsheet may have put a byte order mark in front.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            rows = [(reader.line_num, row) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: line {reader.line_num + 1} is no csv ({error})") from None
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise DataError(f"{path}: the columns are {', '.join(reader.fieldnames or ())}, not {', '.join(COLUMNS)}")
    return [_checked(row, f"{path}: line {line}") for line, row in rows]


def _checked(row: Mapping[Any, Any], where: str) -> Answer:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Answer).validate_python(row)
    except ValidationError as error:
        problem = error.errors()[0]
        raise DataError(f"{where}: {'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}") from None


def shared(answers: Iterable[Answer], known: Iterable[Answer]) -> list[Answer]:
    """The known answers and `answers` with pseudonyms and without reasons, sorted.

    An answer replaces an earlier one of the same rater to the same replies. A pseudonym is a hash of the rater's name,
    equal on every machine, so that answers collected on several machines merge. It keeps names out of the file, but
    anyone who knows a name can compute its hash.
    """
    new = (replace(answer, rater=_pseudonym(answer.rater), reason="") for answer in answers)
    by_key = {(a.rater, a.example, a.variant_a, a.variant_b, a.replies): a for a in (*known, *new)}
    return [by_key[key] for key in sorted(by_key)]


def _pseudonym(rater: str) -> str:
    return hashlib.blake2b(rater.encode(), digest_size=4).hexdigest()


def current(answers: Iterable[Answer], present: Iterable[Item], names: tuple[str, str]) -> list[Answer]:
    """The answers that compare the variants `names` by their present replies."""
    replies = {item.example: item.replies for item in present}
    return [a for a in answers if (a.variant_a, a.variant_b) == names and replies.get(a.example) == a.replies]


def flipped(answer: Answer) -> Answer:
    """The same answer with a and b exchanged."""
    other: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie"}
    return replace(
        answer,
        variant_a=answer.variant_b,
        variant_b=answer.variant_a,
        choice=other[answer.choice],
        first="b" if answer.first == "a" else "a",
    )
