"""Replies that people have rated: a csv of them, or those of EmPO's human evaluation."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from attune.data.dialogue import context_key, normalise
from attune.download.fetch import from_local
from attune.download.sources import Source
from attune.download.sources import load as load_sources
from attune.generation.made_elsewhere import OwnReply
from attune.generation.made_elsewhere import read as read_replies
from attune.report.validity import MEAN
from attune.runtime.errors import DataError, UserError
from attune.runtime.io import read_records, sha256_of

CORPUS, FILE = "empo_human", "ratings.csv"
SOURCES = Path("data/sources.yaml")
SCALES = ("rating", "appropriate", "empathetic", "natural", "engaging")
MISSING = "the first argument names the file of ratings"
# One object, so that equal rows are equal.
NOT_GIVEN = float("nan")


@dataclass(frozen=True)
class Rated:
    """A reply with its context, the human reply if there is one, and people's ratings by scale."""

    own: OwnReply
    system: str
    ratings: dict[str, list[float]] = field(default_factory=dict)

    @property
    def dialogue(self) -> str:
        """The same for replies to one context, which are resampled together."""
        return context_key(self.own.context or ())

    @property
    def human(self) -> bool:
        """Whether the reply is the reference itself."""
        return self.own.reference is not None and normalise(self.own.reply) == normalise(self.own.reference)

    def rating(self, scale: str) -> float:
        """The mean over the raters on a scale, or on all scales; NaN if nobody rated on it."""
        values = [self.rating(name) for name in self.ratings] if scale == MEAN else self.ratings[scale]
        return _mean(values)

    def by_rater(self, scale: str) -> list[float]:
        """A number for each rater who gave one: the rating on a scale, or the rater's mean over the scales."""
        columns = list(self.ratings.values()) if scale == MEAN else [self.ratings[scale]]
        # Scales with columns for different numbers of raters do not say whose a rating is.
        alike = len({len(column) for column in columns}) == 1
        return [mean for one in zip(*columns, strict=True) if isfinite(mean := _mean(one))] if alike else []


def _mean(values: Sequence[float]) -> float:
    """The mean of the given numbers, NaN if there are none; NaN stands for a rating that was not given."""
    given = [value for value in values if isfinite(value)]
    return fmean(given) if given else float("nan")


def read(path: Path, names: Sequence[str] = SCALES) -> list[Rated]:
    """Read the ratings.

    Args:
        path: a csv.
        names: of the scales; those without a column are none.

    Raises:
        DataError: the file is missing, is not UTF-8, lacks a column, or has an invalid row; names file and line.
    """
    records = read_records(path, ("context", "reply"), DataError, MISSING)
    columns = {name: _columns(name, list(records[0][1]) if records else ()) for name in names}
    columns = {name: found for name, found in columns.items() if found}
    if not columns:
        raise DataError(f"{path}:1: no column of a rating: {', '.join(names)} (or {names[0]}_1, {names[0]}_2, …)")
    owns, _ = read_replies(path, {"context": "context"})
    rows: dict[object, Rated] = {}
    raters: dict[tuple[object, str], int] = {}
    for (line, cells), own in zip(records, owns, strict=True):
        where, system = f"{path}:{line}", cells.get("system", "").strip()
        # Without a column of raters each row is a reply of its own.
        key = (context_key(own.context or ()), system, own.reply) if "rater" in cells else line
        if (earlier := raters.setdefault((key, cells.get("rater", "")), line)) != line:
            raise DataError(f"{where}: rater {cells['rater']!r} rated this reply in line {earlier}, too")
        row = rows.setdefault(key, Rated(replace(own, where=""), system, {name: [] for name in columns}))
        given = {name: list(_given(cells, columns[name], where)) for name in columns}
        if not any(isfinite(value) for values in given.values() for value in values):
            raise DataError(f"{where}: no rating")
        for name, values in given.items():
            row.ratings[name].extend(values)
    if len(rows) < 3:
        raise DataError(f"{path}: {len(rows)} rated replies: a correlation needs at least three")
    return list(rows.values())


def _columns(scale: str, header: Sequence[str]) -> list[str]:
    return [name for name in header if re.fullmatch(rf"{re.escape(scale)}(_\d+)?", name)]


def _given(cells: Mapping[str, str], columns: Sequence[str], where: str) -> Iterator[float]:
    """The numbers in the cells of a scale, NaN for an empty one."""
    for name in columns:
        text = cells[name].strip()
        number = _number(text) if text else NOT_GIVEN
        if number is None:
            raise DataError(f"{where}: {name} = {text!r} is not a number")
        yield number


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def published() -> tuple[list[Rated], str]:
    """The ratings of EmPO's human evaluation from the folder of corpora, and their hash.

    Raises:
        UserError: CORPORA_DIR is not set.
        DownloadError: the folder has no such file, or another one.
    """
    with TemporaryDirectory() as made:
        (path,) = corpus_files((FILE,), Path(made))
        return read(path), sha256_of(path)


def corpus_files(names: Sequence[str], target: Path) -> list[Path]:
    """Copies of files of EmPO's human evaluation from the folder of corpora, in `target`, with their published hashes.

    Raises:
        UserError: CORPORA_DIR is not set.
        DownloadError: the folder has no such file, or another one.
    """
    folder = os.environ.get("CORPORA_DIR")
    source = load_sources(SOURCES)[CORPUS]
    if not folder:
        raise UserError(
            f"{CORPUS} has no public address that could be fetched: put {', '.join(names)} into <folder>/{CORPUS} and "
            f"set CORPORA_DIR to <folder>, or name a file of your own. {source.hint}"
        )
    wanted = Source(**vars(source) | {"files": tuple(single for single in source.files if single.file in names)})
    from_local(Path(folder).expanduser() / CORPUS, wanted, target)
    return [target / name for name in names]
