"""Blind comparisons of two variants' replies: what people are asked, and their answers in SQLite and csv.

A rater sees the replies of both variants to a context in an order that is drawn for the rater and the context, without
their names. An answer is kept with the hash of both replies: after another training run, answers to replies that are
gone count no more.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from attune.data.keyed import uniform
from attune.runtime.errors import DataError

Choice = Literal["a", "b", "tie"]
CHOICES: tuple[Choice, ...] = ("a", "b", "tie")
COLUMNS = ("rater", "example", "variant_a", "variant_b", "choice", "reason", "first", "replies", "time")
# Seconds that a writer waits for the others.
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
    """What a rater said of an item; `first` is the variant whose reply was shown first."""

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
    """What there is to compare: the examples of both variants whose replies differ.

    Args:
        a: rows of `data/replies/<variant>.parquet`.
        b: those of the other variant.
    """
    other = {row["id"]: row["reply"] for row in b}
    return [
        Item(row["id"], tuple((turn["role"], turn["text"]) for turn in row["context"]), row["reply"], other[row["id"]])
        for row in a
        if row["id"] in other and row["reply"] != other[row["id"]]
    ]


def order(found: Iterable[Item], rater: str, seed: int) -> list[Item]:
    """The items in the order in which a rater sees them: another one for each."""
    return sorted(found, key=lambda item: (uniform(2**64, seed, "rating", rater, item.example), item.example))


def first(item: Item, rater: str, seed: int) -> Literal["a", "b"]:
    """The variant whose reply the rater sees first."""
    return "b" if uniform(2, seed, "first", rater, item.example) else "a"


class Store:
    """The answers in a SQLite file; every answer is on the disk before `keep` returns.

    Threads take turns on one connection: SQLite's own waiting lets some of many writers wait for ever, and a connection
    for each answer would copy the log into the file each time that the last one is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)
        with self._open() as base:
            # Readers, of other processes too, do not wait for the writer; an answer is synced before it is confirmed.
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = FULL")
            base.execute(
                f"CREATE TABLE IF NOT EXISTS answers ({', '.join(f'{name} TEXT NOT NULL' for name in COLUMNS)}, "
                "PRIMARY KEY (rater, example, variant_a, variant_b, replies))"
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread, in a transaction of its own."""
        try:
            with self._turn, self._base as base:
                yield base
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path} cannot be read or written ({error})") from None

    def keep(self, answer: Answer) -> None:
        """Keep an answer; a second one of the same rater to the same item takes the first one's place.

        Raises:
            DataError: the choice is none of a, b, tie, or the file cannot be written.
        """
        if answer.choice not in CHOICES:
            raise DataError(f"choice {answer.choice!r} is none of {', '.join(CHOICES)}")
        marks = ", ".join("?" * len(COLUMNS))
        with self._open() as base:
            base.execute(f"INSERT OR REPLACE INTO answers VALUES ({marks})", [getattr(answer, c) for c in COLUMNS])

    def answers(self, rater: str | None = None) -> list[Answer]:
        """All answers, or those of a rater, by rater and example."""
        names = ", ".join(COLUMNS)
        # By the key's first column where a rater is named: the page asks before each answer.
        which, values = ("", ()) if rater is None else ("WHERE rater = ?", (rater,))
        with self._open() as base:
            found = base.execute(f"SELECT {names} FROM answers {which} ORDER BY {names}", values)
            return [Answer(*row) for row in found]


def as_csv(answers: Sequence[Answer]) -> str:
    """The answers as csv, a line each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(answer, name) for name in COLUMNS] for answer in answers)
    return buffer.getvalue()


def read_csv(path: Path) -> list[Answer]:
    """The answers of a csv that `as_csv` wrote; none where there is no such file.

    Raises:
        DataError: a column or a value does not fit; names file, line and value.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
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
        found = error.errors()[0]
        raise DataError(f"{where}: {'.'.join(map(str, found['loc']))}: {found['msg'].lower()}") from None


def shared(answers: Iterable[Answer], known: Iterable[Answer]) -> list[Answer]:
    """The answers without what tells who gave them, joined to those that are known; a later one takes the place of one
    of the same rater to the same replies.

    A rater's name becomes a hash of it, the same on every machine, so that answers collected in several places meet.
    It tells raters apart and keeps names out of the file; who knows a name can find its hash.
    """
    own = (replace(one, rater=_alias(one.rater), reason="") for one in answers)
    kept = {(one.rater, one.example, one.variant_a, one.variant_b, one.replies): one for one in (*known, *own)}
    return [kept[key] for key in sorted(kept)]


def _alias(rater: str) -> str:
    return hashlib.blake2b(rater.encode(), digest_size=4).hexdigest()


def current(answers: Iterable[Answer], found: Iterable[Item], names: tuple[str, str]) -> list[Answer]:
    """The answers that compare these variants and were given to the replies of now."""
    now = {item.example: item.replies for item in found}
    return [one for one in answers if (one.variant_a, one.variant_b) == names and now.get(one.example) == one.replies]


def flipped(answer: Answer) -> Answer:
    """The same answer with the variants named the other way round."""
    other: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie"}
    return replace(
        answer,
        variant_a=answer.variant_b,
        variant_b=answer.variant_a,
        choice=other[answer.choice],
        first="b" if answer.first == "a" else "a",
    )
