"""Blind comparisons of two variants' replies: what people are asked, their answers in SQLite, what follows from them.

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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.errors import UserError
from stages.preferences.opposite_emotion import uniform

Choice = Literal["a", "b", "tie"]
CHOICES: tuple[Choice, ...] = ("a", "b", "tie")
COLUMNS = ("rater", "example", "variant_a", "variant_b", "choice", "reason", "first", "replies", "time")
# Seconds that a writer waits for the others.
PATIENCE = 30.0


class RatingsError(UserError):
    """An answer, or the file of answers, does not fit; the message says what and where."""


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
            raise RatingsError(f"{self.path} cannot be read or written ({error})") from None

    def keep(self, answer: Answer) -> None:
        """Keep an answer; a second one of the same rater to the same item takes the first one's place.

        Raises:
            RatingsError: the choice is none of a, b, tie, or the file cannot be written.
        """
        if answer.choice not in CHOICES:
            raise RatingsError(f"choice {answer.choice!r} is none of {', '.join(CHOICES)}")
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


def summary(answers: Sequence[Answer], resamples: int, seed: int) -> dict[str, float]:
    """How often b wins, and how far raters agree, of answers that compare the same two variants.

    Returns:
        `answers`, `examples`, `raters`; `win_rate`, the share x 100 of answers for b, a tie counting half, with
        `win_rate.low` and `win_rate.high`, its 95 % interval by the bootstrap over examples, all answers to one drawn
        together; `ties` x 100; and `agreement`, Krippendorff's alpha of nominal data (2004, chapter 11), where two
        raters at least have answered the same example: 1 is perfect, 0 chance.

    Raises:
        RatingsError: there are none.
    """
    import numpy as np

    if not answers:
        raise RatingsError("no answers yet: `python -m stages.rate` asks for them")
    worth = {"a": 0.0, "b": 1.0, "tie": 0.5}
    by_example: dict[str, list[float]] = {}
    for one in answers:
        by_example.setdefault(one.example, []).append(worth[one.choice])
    sums = np.array([[sum(values), len(values)] for values in by_example.values()])
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples) @ sums
    low, high = np.percentile(100 * drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    counts = Counter(one.choice for one in answers)
    found = {
        "answers": float(len(answers)),
        "examples": float(len(by_example)),
        "raters": float(len({one.rater for one in answers})),
        "win_rate": float(100 * sums[:, 0].sum() / len(answers)),
        "win_rate.low": float(low),
        "win_rate.high": float(high),
        "ties": 100 * counts["tie"] / len(answers),
    }
    agreement = alpha(answers)
    return found if agreement is None else found | {"agreement": agreement}


def alpha(answers: Sequence[Answer]) -> float | None:
    """Krippendorff's alpha; None where no example has two answers, or all answers are the same."""
    import krippendorff
    import numpy as np

    raters, examples = (sorted({getattr(one, name) for one in answers}) for name in ("rater", "example"))
    values = np.full((len(raters), len(examples)), np.nan)
    for one in answers:
        values[raters.index(one.rater), examples.index(one.example)] = CHOICES.index(one.choice)
    compared = values[:, (~np.isnan(values)).sum(0) > 1]
    if len(np.unique(compared[~np.isnan(compared)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=compared, level_of_measurement="nominal"))
