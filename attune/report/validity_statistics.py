"""Does a metric order replies as people do: rank correlation of scores and ratings, with a bootstrap interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

LEVEL = 0.95
CELLS = 4_000_000
"""Values held at once, so that memory does not grow with the number of draws."""


class Correlation(NamedTuple):
    """Spearman's rank correlation with the ends of its 95 % interval; NaN where one side is constant."""

    rho: float
    low: float
    high: float


def spearman(scores: Numbers, ratings: Numbers, resamples: int, seed: int) -> Correlation:
    """Rank correlation of (N,) scores and (N,) ratings (ties share their mean rank), and its percentile interval.

    Args:
        scores: of a metric, by reply.
        ratings: of people, of the same replies.
        resamples: draws of N replies with replacement; one in which a side is constant is left out.
        seed: of the draws; equal for metrics over the same replies.

    Raises:
        ValueError: fewer than three replies, or not as many ratings.
    """
    if len(scores) != len(ratings) or len(scores) < 3:
        raise ValueError(f"{len(scores)} scores and {len(ratings)} ratings: expected as many, at least three")
    rho = float(_rank_correlation(scores[None], ratings[None])[0])
    if np.isnan(rho):
        return Correlation(rho, rho, rho)
    random, drawn = np.random.default_rng(seed), []
    step = max(1, CELLS // len(scores))
    for start in range(0, resamples, step):
        chosen = random.integers(len(scores), size=(min(step, resamples - start), len(scores)))
        drawn.append(_rank_correlation(scores[chosen], ratings[chosen]))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(np.concatenate(drawn), [tail, 100 - tail])
    return Correlation(rho, float(low), float(high))


def _rank_correlation(one: Numbers, other: Numbers) -> Numbers:
    """Pearson's correlation of the ranks within each row of two (R, N) arrays: (R,)."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) for values in (one, other)]
    x, y = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        correlation: Numbers = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return correlation
