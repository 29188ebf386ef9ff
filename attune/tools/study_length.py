"""The differences of a study at matched length: what is left of them among replies of about the same number of words.

As `attune.report.length`, in each seed, with the classes of length of the replies of all seeds; the interval draws
seeds and examples as that of the differences themselves (`study_differences`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attune.data.dialogue import dialogue_of
from attune.report.length import WORDS, Matched, class_edges, of_replies, within_classes
from attune.scoring.intervals.bootstrap import LEVEL, Numbers, resample_weights

if TYPE_CHECKING:
    import pandas as pd

    Sides = Mapping[int, tuple[pd.DataFrame, pd.DataFrame]]
    """Seed to the scores by example of both sides, with the ids as index."""


def at_length(sides: Sides, metric: str, targets: Any, draws: Numbers, seed: int) -> Matched | None:
    """The difference of a metric at matched length.

    Args:
        sides: with the columns `WORDS` and `metric`.
        metric: a column.
        targets: how an example's id contains that of its dialogue; the examples of a dialogue are drawn together.
        draws: (R, K) shares of the K seeds in the R resamples.
        seed: of the resamples of the examples.

    Returns:
        None where a seed has no class of length with replies of both sides.
    """
    shared = {}
    for key, (ours, theirs) in sides.items():
        known = ours[metric].dropna().index.intersection(theirs[metric].dropna().index).sort_values()
        shared[key] = (ours.loc[known], theirs.loc[known])
    # MMLU's scores are by question: none has words.
    if not all(len(ours) for ours, _ in shared.values()):
        return None
    edges = class_edges([side for pair in shared.values() for side in pair])
    measured = {key: within_classes(*pair, metric=metric, edges=edges) for key, pair in shared.items()}
    if not all(replies for _, replies in measured.values()):
        return None
    ids = sorted({str(name) for ours, _ in shared.values() for name in ours.index})
    place = {name: number for number, name in enumerate(ids)}
    places = {key: [place[str(name)] for name in ours.index] for key, (ours, _) in shared.items()}
    groups = [dialogue_of(name, targets) for name in ids]
    parts = list(resample_weights(len(ids), len(draws), seed, groups))
    by_seed = np.array(
        [
            np.concatenate([difference(weights[:, places[key]]) for weights in parts])
            for key, (difference, _) in measured.items()
        ]
    )
    low, high = np.percentile(means_over_seeds(by_seed, draws), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    each = [float(difference(np.ones((1, len(places[key]))))[0]) for key, (difference, _) in measured.items()]
    replies = sum(replies for _, replies in measured.values())
    return Matched(float(np.mean(each)), float(low), float(high), replies)


def means_over_seeds(by_seed: Numbers, draws: Numbers) -> Numbers:
    """The mean of each resample over the seeds that it draws, from (K, R) values and (R, K) shares; without NaN."""
    # A seed that is not drawn may have no value: NaN, which times 0 is NaN.
    means: Numbers = np.where(draws.T > 0, draws.T * by_seed, 0.0).sum(axis=0)
    return means[~np.isnan(means)]


def of_metrics(
    pairs: Mapping[int, tuple[Mapping[str, pd.DataFrame], Mapping[str, pd.DataFrame]]],
    columns: Sequence[tuple[str, str]],
    targets: Any,
    draws: Numbers,
    seed: int,
) -> dict[str, Matched]:
    """`at_length` of each metric that has a score by example on both sides.

    Args:
        pairs: seed to the scores of both sides, by scorer; those of `text` have the words.
        columns: scorer and metric.
        targets, draws, seed: as of `at_length`.
    """
    found = {}
    for scorer, metric in columns:
        sides = {
            key: (_scores(ours, scorer, metric), _scores(theirs, scorer, metric))
            for key, (ours, theirs) in pairs.items()
        }
        if all(of_replies(metric, side) for pair in sides.values() for side in pair):
            one = at_length(sides, metric, targets, draws, seed)
            if one is not None:
                found[metric] = one
    return found


def _scores(tables: Mapping[str, pd.DataFrame], scorer: str, metric: str) -> pd.DataFrame:
    """The words of each example and, where it has one, the metric."""
    import pandas as pd

    known = [
        tables[name][[column]] for name, column in (("text", WORDS), (scorer, metric)) if column in tables.get(name, ())
    ]
    return pd.concat(known, axis=1, join="inner") if known else pd.DataFrame()
