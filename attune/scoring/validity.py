"""Validity of a metric: its rank correlation with human ratings, with a bootstrap interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

LEVEL = 0.95
MAX_VALUES = 4_000_000
"""Resampled values in memory at once, so that memory is independent of the number of resamples."""


class Correlation(NamedTuple):
    """Spearman's rank correlation with the bounds of its 95 % interval; NaN if one side is constant."""

    rho: float
    low: float
    high: float


def spearman(scores: Numbers, ratings: Numbers, resamples: int, seed: int) -> Correlation:
    """Rank correlation of (N,) scores and (N,) ratings (ties share their mean rank), with its percentile interval.

    Args:
        scores: of a metric, by reply.
        ratings: by people, of the same replies.
        resamples: bootstrap resamples of the N replies; those in which a side is constant are left out.
        seed: of the resamples; metrics over the same replies get the same ones.

    Raises:
        ValueError: fewer than three replies, or the numbers of scores and ratings differ.
    """
    if len(scores) != len(ratings) or len(scores) < 3:
        raise ValueError(f"{len(scores)} scores and {len(ratings)} ratings: expected as many, at least three")
    rho = float(_rank_correlation(scores[None], ratings[None])[0])
    if np.isnan(rho):
        return Correlation(rho, rho, rho)
    rng, correlations = np.random.default_rng(seed), []
    step = max(1, MAX_VALUES // len(scores))
    for start in range(0, resamples, step):
        indices = rng.integers(len(scores), size=(min(step, resamples - start), len(scores)))
        correlations.append(_rank_correlation(scores[indices], ratings[indices]))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(np.concatenate(correlations), [tail, 100 - tail])
    return Correlation(rho, float(low), float(high))


def _rank_correlation(first: Numbers, second: Numbers) -> Numbers:
    """Pearson's correlation of the ranks within each row of two (R, N) arrays: (R,)."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) for values in (first, second)]
    x, y = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        correlation: Numbers = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return correlation
