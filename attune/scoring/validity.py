"""Validity of a metric: how far it orders replies as people do, with intervals by a bootstrap over dialogues.

Replies to one dialogue share its context, so they are resampled together, by `attune/scoring/intervals/bootstrap.py`.
A resample is a vector of weights of the replies, and ranks under weights need no new sorting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attune.scoring.intervals.bootstrap import resample_weights
from attune.scoring.text.overlap import TOKENISER

Numbers = NDArray[np.float64]

LEVEL = 0.95


class Estimate(NamedTuple):
    """A value with the bounds of its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def spearman(
    scores: Numbers, ratings: Numbers, resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> Estimate:
    """Rank correlation of (N,) scores and (N,) ratings (ties share their mean rank), with its percentile interval.

    Args:
        scores: of a metric, by reply.
        ratings: by people, of the same replies.
        resamples: bootstrap resamples; those in which a side is constant are left out.
        seed: of the resamples; metrics over the same replies get the same ones.
        clusters: (N,) names of the dialogues, whose replies are resampled together; None: each reply alone.

    Returns:
        Spearman's rho; NaN if one side is constant.

    Raises:
        ValueError: fewer than three replies, or the numbers of scores and ratings differ.
    """
    if len(scores) != len(ratings) or len(scores) < 3:
        raise ValueError(f"{len(scores)} scores and {len(ratings)} ratings: expected as many, at least three")
    first, second = (np.unique(values, return_inverse=True)[1] for values in (scores, ratings))

    def correlation(weights: Numbers) -> Numbers:
        return _weighted_correlation(_ranks(first, weights), _ranks(second, weights), weights)

    return _bootstrap(correlation, len(scores), resamples, seed, clusters)


def ordered_pairs(ratings: Sequence[float], dialogues: Sequence[str]) -> list[tuple[int, int]]:
    """The pairs (i, j) of replies to one dialogue of which people rate i higher."""
    members: dict[str, list[int]] = {}
    for index, dialogue in enumerate(dialogues):
        members.setdefault(dialogue, []).append(index)
    return [
        (i, j) if ratings[i] > ratings[j] else (j, i)
        for group in members.values()
        for i, j in combinations(group, 2)
        if ratings[i] != ratings[j]
    ]


def pairwise_agreement(
    scores: Numbers, ratings: Numbers, dialogues: Sequence[str], resamples: int, seed: int
) -> tuple[Estimate, int]:
    """100 · pairs of replies to one dialogue that the metric orders as people do / pairs; equal scores count half.

    Args:
        scores: (N,), higher is better.
        ratings: (N,).
        dialogues: (N,), resampled whole.
        resamples: of the bootstrap.
        seed: of the resamples.

    Returns:
        The share, 50 by chance, and the number of pairs; NaN if there are none.
    """
    pairs = ordered_pairs(ratings.tolist(), dialogues)
    if not pairs:
        return Estimate(float("nan"), float("nan"), float("nan")), 0
    better, worse = np.array(pairs).T
    agrees = 100 * ((scores[better] > scores[worse]) + 0.5 * (scores[better] == scores[worse]))

    def share(weights: Numbers) -> Numbers:
        result: Numbers = weights @ agrees / weights.sum(axis=1)
        return result

    return _bootstrap(share, len(pairs), resamples, seed, [dialogues[i] for i in better]), len(pairs)


def ceiling(
    ratings: Sequence[Sequence[float]], resamples: int, seed: int, clusters: Sequence[str]
) -> tuple[Estimate, int]:
    """Rank correlation of one rater with the mean of the others: what a metric as good as one more rater would reach.

    Args:
        ratings: (N,) ratings of each reply by its raters; a reply with one rater is left out.
        resamples: of the bootstrap.
        seed: of the resamples.
        clusters: (N,) dialogues.

    Returns:
        The correlation over all ratings, each beside the mean of the others of its reply, and their number; NaN below
        three.
    """
    alone, others, dialogues = [], [], []
    for values, dialogue in zip(ratings, clusters, strict=True):
        if len(values) < 2:
            continue
        for value in values:
            alone.append(value)
            others.append((sum(values) - value) / (len(values) - 1))
            dialogues.append(dialogue)
    if len(alone) < 3:
        return Estimate(float("nan"), float("nan"), float("nan")), len(alone)
    return spearman(np.array(alone, float), np.array(others, float), resamples, seed, dialogues), len(alone)


def sentence_bleu(reply: str, reference: str, order: int) -> float:
    """BLEU-`order` of one reply, 0 to 100: the row form of corpus BLEU, by sacrebleu with its effective order."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(lowercase=True, tokenize=TOKENISER, max_ngram_order=order, effective_order=True)
    return float(scorer.sentence_score(reply, [reference]).score)


def _bootstrap(
    measure: Callable[[Numbers], Numbers], count: int, resamples: int, seed: int, clusters: Sequence[str] | None
) -> Estimate:
    """The (R,) measure under (R, N) weights: once with equal weights, and the percentiles of its resamples."""
    value = float(measure(np.ones((1, count)))[0])
    if np.isnan(value):
        return Estimate(value, value, value)
    drawn: Iterator[Numbers] = (measure(weights) for weights in resample_weights(count, resamples, seed, clusters))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(np.concatenate(list(drawn)), [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def _ranks(places: NDArray[np.intp], weights: Numbers) -> Numbers:
    """Mean ranks, (R, N), of values in samples that hold each of them as often as its weight.

    Args:
        places: (N,) the place of each value among the distinct ones.
        weights: (R, N) counts.
    """
    count = int(places.max()) + 1
    order = np.argsort(places, kind="stable")
    starts = np.searchsorted(places[order], np.arange(count))
    groups = np.add.reduceat(weights[:, order], starts, axis=1)
    middle: Numbers = np.cumsum(groups, axis=1) - (groups - 1) / 2
    return middle[:, places]


def _weighted_correlation(first: Numbers, second: Numbers, weights: Numbers) -> Numbers:
    """Pearson's correlation within each row of (R, N) arrays: (R,), NaN where a side is constant."""
    total = weights.sum(axis=1, keepdims=True)
    x, y = (values - (weights * values).sum(axis=1, keepdims=True) / total for values in (first, second))
    squares = (weights * x**2).sum(axis=1), (weights * y**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Differences of the order of rounding are none.
        constant = (squares[0] < 1e-9) | (squares[1] < 1e-9)
        correlation: Numbers = (weights * x * y).sum(axis=1) / np.sqrt(squares[0] * squares[1])
    return np.where(constant, np.nan, correlation)
