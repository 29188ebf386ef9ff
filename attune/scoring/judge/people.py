"""How people compared two replies, for the agreement of a judge with them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

from attune.data.keyed import uniform
from attune.runtime.errors import DataError
from attune.runtime.io import read_records
from attune.scoring.judge.verdicts import Duel

POINTS = (0.0, 0.5, 1.0)
COLUMNS = ("dialogue", "system", "context", "reply")


@dataclass(frozen=True)
class Compared:
    """A duel, and the points that people give `ours`: 1, 0.5 or 0."""

    duel: Duel
    points: float


def read_rated(path: Path, rating: str, limit: int | None, seed: int) -> list[Compared]:
    """Pairs of systems on the same context, by the mean of people's ratings, in the format of EmPO's human evaluation.

    Args:
        path: csv with a row for each rating: columns `dialogue`, `system`, `context` (a JSON list of messages), `reply`
            and `rating`, a number.
        rating: name of that column; higher is better.
        limit: as many random pairs; None: all.
        seed: of the choice.

    Raises:
        DataError: a column is missing or a value is malformed; names file and line.
    """
    ratings: dict[tuple[str, str], list[float]] = defaultdict(list)
    shown: dict[tuple[str, str], tuple[tuple[tuple[str, str], ...], str]] = {}
    for line, row in read_records(path, (*COLUMNS, rating), DataError, "judge.rated names it"):
        key = row["dialogue"], row["system"]
        try:
            context = tuple((str(turn["role"]), str(turn["content"])) for turn in json.loads(row["context"]))
            ratings[key].append(float(row[rating]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{line}: expected messages and a number in {rating}: {error!r}") from None
        shown[key] = context, row["reply"]
    systems: dict[str, list[str]] = defaultdict(list)
    for dialogue, system in sorted(shown):
        systems[dialogue].append(system)
    pairs = [
        _compared(dialogue, (a, b), shown, ratings) for dialogue, of in systems.items() for a, b in combinations(of, 2)
    ]
    different = [pair for pair in pairs if pair.duel.ours.strip() != pair.duel.theirs.strip()]
    drawn = sorted(different, key=lambda pair: uniform(2**64, seed, "judge", pair.duel.id))
    return drawn[:limit]


def _compared(
    dialogue: str,
    pair: tuple[str, str],
    shown: dict[tuple[str, str], tuple[tuple[tuple[str, str], ...], str]],
    ratings: dict[tuple[str, str], list[float]],
) -> Compared:
    (context, ours), (_, theirs) = (shown[dialogue, system] for system in pair)
    a, b = (fmean(ratings[dialogue, system]) for system in pair)
    return Compared(Duel(f"{dialogue}/{'/'.join(pair)}", context, ours, theirs), (a > b) + 0.5 * (a == b))


def kappa(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Cohen's kappa (1960) of two raters who give win, tie or loss, over the items that both rated.

    Returns:
        None if there are fewer than two such items, or both give one and the same verdict to all.
    """
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(both) < 2:
        return None
    expected = sum(fmean(a == value for a, _ in both) * fmean(b == value for _, b in both) for value in POINTS)
    observed = fmean(a == b for a, b in both)
    return None if expected == 1 else (observed - expected) / (1 - expected)
