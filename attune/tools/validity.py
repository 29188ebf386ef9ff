"""Correlate every metric with human ratings of replies: Spearman's rank correlation.

    python -m attune validity ratings.csv

reads a csv with the columns `context` (the turn before the reply), `reply`, `rating` (a number; with several raters
`rating_1`, `rating_2`, …, whose mean is taken over those that are not empty) and optionally `reference` (a human reply;
metrics of the reference leave out a reply whose cell is empty), and prints Spearman's correlation of every metric with
the ratings, its 95 % interval and the number of replies.
Encoder and layer are those of params.yaml; without `models/epitome` the levels of empathy are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import fmean

from attune.classifiers.epitome.model import MECHANISMS
from attune.config.params import load
from attune.config.schema import Params, bertscore_encoder
from attune.report.tables import table
from attune.runtime.cli import command_parser
from attune.runtime.errors import DataError
from attune.runtime.io import read_csv, read_header
from attune.scoring.text import overlap

EPITOME = Path("models/epitome")
COLUMNS = {"rho": ("Spearman", 3), "low": ("from", 3), "high": ("to", 3), "n": ("n", 0)}
# Replies of a correlation.
LEAST = 3
Scores = dict[str, Sequence[float]]


@dataclass(frozen=True)
class Rated:
    """A reply with its context, its mean rating, and the human reply if the file has one."""

    context: str
    reply: str
    reference: str | None
    rating: float


def read(path: Path) -> list[Rated]:
    """Read the ratings.

    Raises:
        DataError: the file is missing, is not UTF-8, lacks a column, or has an invalid row; names file and line.
    """
    rows = list(_rows(read_csv(path, DataError, "the first argument names the file of ratings"), path))
    if len(rows) < LEAST:
        raise DataError(f"{path}: {len(rows)} rows: a correlation needs at least three")
    return rows


def _rows(rows: Sequence[tuple[int, list[str]]], path: Path) -> Iterator[Rated]:
    header = read_header(path, rows, ("context", "reply"), DataError)
    raters = [name for name in header if re.fullmatch(r"rating(_\d+)?", name)]
    if not raters:
        raise DataError(f"{path}:1: column rating is missing (or rating_1, rating_2, …)")
    read_header(path, rows, raters, DataError)
    for line, cells in rows[1:]:
        where = f"{path}:{line}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        row = dict(zip(header, cells, strict=True))
        yield Rated(row["context"], row["reply"], row.get("reference", "").strip() or None, _rating(row, raters, where))


def _rating(row: dict[str, str], raters: Sequence[str], where: str) -> float:
    given = {name: row[name] for name in raters if row[name].strip()}
    if not given:
        raise DataError(f"{where}: no rating")
    numbers = {name: _number(text) for name, text in given.items()}
    for name, number in numbers.items():
        if number is None:
            raise DataError(f"{where}: {name} = {given[name]!r} is not a number")
    return fmean(number for number in numbers.values() if number is not None)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def scores(rows: Sequence[Rated], params: Params) -> tuple[Scores, list[str]]:
    """Every available metric by reply, and a sentence for each group that is not available.

    Metrics of the reference are NaN for a reply without one.
    """
    replies = [row.reply for row in rows]
    referenced = [i for i, row in enumerate(rows) if row.reference is not None]
    values: Scores = {"reply_words": overlap.lengths(replies), **overlap.distinct_per_reply(replies)}
    left_out = []
    if referenced:
        values |= _everywhere(_overlap([rows[i] for i in referenced], params), referenced, len(rows))
    else:
        left_out.append("The file has no references: ROUGE, BERTScore and diff are left out.")
    if (EPITOME / "epitome.json").is_file():
        values |= _levels(rows, referenced, params)
    else:
        left_out.append(
            f"{EPITOME} is missing (`dvc repro classifier@epitome` trains it): the levels of empathy are left out."
        )
    return values, left_out


def _everywhere(values: Scores, indices: Sequence[int], length: int) -> Scores:
    """Scores of the rows at `indices` as columns of all rows, NaN at the others."""
    return {
        name: [dict(zip(indices, column, strict=True)).get(i, nan) for i in range(length)]
        for name, column in values.items()
    }


def _overlap(rows: Sequence[Rated], params: Params) -> Scores:
    from attune.models.encoder import load_encoder
    from attune.scoring.text.bertscore import bertscore

    model, tokenizer = load_encoder(bertscore_encoder(params), params.hardware)
    settings = params.bertscore
    replies, references = [row.reply for row in rows], [str(row.reference) for row in rows]
    return {
        **overlap.rouge_per_example(replies, references),
        **bertscore(replies, references, model, tokenizer, settings.layer, settings.batch_size),
    }


def _levels(rows: Sequence[Rated], referenced: Sequence[int], params: Params) -> Scores:
    """`level_*`, and `diff_*` of the rows with a reference."""
    from attune.classifiers.epitome.levels import score

    posts = [row.context for row in rows]
    levels = score(EPITOME, posts, [row.reply for row in rows], params.hardware)
    values: Scores = {f"level_{MECHANISMS[name]}": column for name, column in levels.items()}
    if referenced:
        human = score(
            EPITOME, [posts[i] for i in referenced], [str(rows[i].reference) for i in referenced], params.hardware
        )
        gaps: Scores = {
            f"diff_{short}": [(levels[name][i] - level) ** 2 for i, level in zip(referenced, human[name], strict=True)]
            for name, short in MECHANISMS.items()
        }
        values |= _everywhere(gaps, referenced, len(rows))
    return values


def page(rows: Sequence[Rated], values: Scores, left_out: Sequence[str], resamples: int, seed: int) -> str:
    """The table of correlations, a row per metric, and notes on the metrics left out."""
    import numpy as np

    from attune.scoring.validity import spearman

    ratings = np.array([row.rating for row in rows], dtype=float)
    lines: dict[str, dict[str, float]] = {}
    for name, column in values.items():
        scored = np.isfinite(numbers := np.array(column, dtype=float))
        lines[name] = {"n": int(scored.sum())}
        if lines[name]["n"] >= LEAST:
            result = spearman(numbers[scored], ratings[scored], resamples, seed)
            lines[name] |= {key: value for key, value in result._asdict().items() if isfinite(value)}
    notes = [
        "A dash: all replies have the same score, or fewer than three have one.",
        "diff: lower is better, so a good metric correlates negatively.",
    ]
    return "\n".join([table("metric", lines, COLUMNS), "", *notes, *left_out])


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    parser = command_parser("validity", __doc__)
    parser.add_argument("file", type=Path, help="a csv of ratings")
    rows, params = read(parser.parse_args(argv).file), load()
    print(page(rows, *scores(rows, params), params.evaluate.resamples, params.seed))
