"""What length explains: a metric's rank correlation with words, and a difference at matched length.

Two variants that write replies of different length differ in every metric that length moves. So the replies of both are
cut into classes of about the same number of words, at the quintiles of all of them, and compared within each: five
classes remove about nine tenths of the bias by one covariate (Cochran 1968, Biometrics 24).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from attune.scoring.intervals.bootstrap import Numbers, resample_weights

if TYPE_CHECKING:
    import pandas as pd

WORDS = "reply_words"
CLASSES = 5


def of_replies(metric: str, scores: pd.DataFrame) -> bool:
    """Whether a metric is the mean of a score of each reply, other than its length, and words are known."""
    return {metric, WORDS} <= set(scores) and metric not in (WORDS, "empty_share", "preference_accuracy")


class Matched(NamedTuple):
    """A difference at matched length with its 95 % interval, and the number of replies that are compared."""

    value: float
    low: float
    high: float
    replies: int


def at_matched_length(
    ours: pd.DataFrame, theirs: pd.DataFrame, metric: str, dialogues: Sequence[str], resamples: int, seed: int
) -> Matched:
    """The difference of a metric between two variants, ours less theirs, among replies of about the same length.

    A class of length counts by n₁n₂ / (n₁ + n₂) of its n₁ and n₂ replies, the weight of the least variance. Dialogues
    are resampled whole, and the classes stay.

    Args:
        ours: (N,) scores by example, with `WORDS` and the metric.
        theirs: the same of the same examples in the same order.
        metric: the column.
        dialogues: (N,).
        resamples: of the bootstrap.
        seed: of the resamples.

    Returns:
        `replies` counts those in a class with replies of both sides; 0, and NaN as the rest, where there is none.
    """
    import numpy as np

    known = known_to_both(ours, theirs, metric)
    ours, theirs = ours[known], theirs[known]
    difference, replies = within_classes(ours, theirs, metric, class_edges((ours, theirs)))
    if not replies:
        return Matched(np.nan, np.nan, np.nan, 0)
    value = float(difference(np.ones((1, len(ours))))[0])
    groups = [name for name, one in zip(dialogues, known, strict=True) if one]
    drawn = [difference(weights) for weights in resample_weights(len(ours), resamples, seed, groups)]
    low, high = np.nanpercentile(np.concatenate(drawn), [2.5, 97.5])
    return Matched(value, float(low), float(high), replies)


def correlation_with_words(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> float:
    """Spearman's correlation of a metric with words, the mean over both sides; NaN where one side is constant.

    Args:
        ours, theirs, metric: as of `at_matched_length`.
    """
    import numpy as np

    known = known_to_both(ours, theirs, metric)
    # A constant has no correlation: NaN, without a warning.
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean([side[metric].rank().corr(side[WORDS].rank()) for side in (ours[known], theirs[known])]))


def known_to_both(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> Any:
    """(N,) booleans: the examples that have the metric on both sides."""
    return (ours[metric].notna() & theirs[metric].notna()).to_numpy()


def class_edges(sides: Iterable[pd.DataFrame]) -> Numbers:
    """The numbers of words between the classes of length: the quintiles of the replies of all sides."""
    import numpy as np

    words = np.concatenate([side[WORDS].to_numpy(float) for side in sides])
    edges: Numbers = np.unique(np.quantile(words, np.arange(1, CLASSES) / CLASSES))
    return edges


def within_classes(
    ours: pd.DataFrame, theirs: pd.DataFrame, metric: str, edges: Numbers
) -> tuple[Callable[[Numbers], Numbers], int]:
    """The difference within the classes of length, as a function of the examples' weights, and the replies compared.

    Args:
        ours: (N,) scores by example, with `WORDS` and the metric, which every example has.
        theirs: the same of the same examples in the same order.
        metric: the column.
        edges: of `class_edges`.

    Returns:
        A function of weights (R, N) to differences (R,), NaN where no class has replies of both sides, and the number
        of replies in a class with replies of both sides.
    """
    import numpy as np

    scores = [side[metric].to_numpy(float) for side in (ours, theirs)]
    places = [np.searchsorted(edges, side[WORDS].to_numpy(float), side="left") for side in (ours, theirs)]
    both = sorted(set(places[0].tolist()) & set(places[1].tolist()))
    # (classes, N) of each side: whether a reply is in the class.
    members = [np.array([place == name for name in both], dtype=float).reshape(-1, len(place)) for place in places]

    def difference(weights: Numbers) -> Numbers:
        counts = [weights @ member.T for member in members]
        sums = [weights @ (member * score).T for member, score in zip(members, scores, strict=True)]
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = counts[0] * counts[1] / (counts[0] + counts[1])
            gaps = sums[0] / counts[0] - sums[1] / counts[1]
            # A class without replies of one side does not count; a resample without any other class has no value.
            shares, gaps = (np.nan_to_num(part, posinf=0, neginf=0) for part in (shares, gaps))
            found: Numbers = (shares * gaps).sum(axis=1) / shares.sum(axis=1)
            return found

    return difference, int(sum(member.sum() for member in members))
