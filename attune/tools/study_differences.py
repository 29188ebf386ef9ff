"""The paired differences of a study's settings, values of x or variants, with intervals over seeds and examples.

Runs of two settings with the same seed differ in the settings alone, and answer the same examples, as do the variants
of a run. So the difference of each seed is paired by example, and the mean over the seeds is resampled in both: seeds,
and examples in common to both sides and to all seeds (a bootstrap of crossed factors, Owen 2007, arXiv:0712.1111). Of K
seeds K - 1 are drawn, since K draws would have (K - 1) / K of their variance (Rao and Wu 1988, JASA 83).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from attune.data.dialogue import dialogue_of
from attune.report.changes import paired_columns
from attune.report.length import Matched
from attune.report.results import MMLU, scores_file
from attune.scoring.intervals.bootstrap import LEVEL, Columns, Numbers, metrics, resample_weights
from attune.scoring.intervals.significance import holm, p_value
from attune.tools.runs import Run, differing, scorer_of
from attune.tools.study_length import means_over_seeds, of_metrics
from attune.tools.study_plan import MEANS, SETTING, Shown

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from attune.tools.study_results import Row

RESAMPLES_SEED, RESAMPLES = 0, 2000
NOT_CACHED = "their scores by example are not in DVC's cache here, and `dvc exp pull` or a new run brings them"

Tables = Mapping[str, "pd.DataFrame"]
"""Scorer to scores by example."""
Measured = tuple[float, float, float, dict[int, float], int]
"""The ends of the interval, the p-value, the difference of each seed, and the number of examples."""


@dataclass(frozen=True)
class Difference:
    """A metric of a variant at a point of the grid, less that of `less`, the reference or another variant: the mean
    over seeds, its 95 % interval, the p-value, the difference of each seed, and the number of examples that any of them
    has. `axis` is that of which `less` is a value; None: `less` is a variant. `corrected` is the p-value corrected for
    the number of metrics (Holm 1979), `matched` the difference at matched length."""

    point: dict[str, Any]
    variant: str
    less: str
    metric: str
    low: float
    high: float
    p: float
    by_seed: dict[int, float]
    examples: int
    axis: str | None = SETTING
    corrected: float | None = None
    matched: Matched | None = None

    @property
    def value(self) -> float:
        """The mean over the seeds."""
        return fmean(self.by_seed.values())


def differences(
    rows: Sequence[Row], shown: Shown, runs: Mapping[str, Run]
) -> tuple[list[Difference], dict[str, list[str]]]:
    """Of settings: each point's rows less those of its reference with the same other axes, variant and seed. Without a
    reference, of variants: the rows of each less those of each before it in `shown.variants`.

    Args:
        rows: of the study's experiments.
        shown: variants, metrics and reference.
        runs: each experiment's.

    Returns:
        In the order of the rows, and why which experiments are left out: reason to experiments.

    Raises:
        UserError: a file of scores cannot be read.
    """
    left: dict[str, list[str]] = {}
    tables = _scores_of_rows(rows, shown, runs, left)
    found: list[Difference] = []
    for (point, variant, less), pairs in _compared_rows(rows, shown, left).items():
        sides = {row.seed: _sides(row, other, runs, tables, left) for row, other in pairs}
        targets = runs[pairs[0][0].experiment].params["context"]["targets"]
        measured = paired(sides, targets)
        columns = [(scorer_of(key), key) for key in shown.every]
        matched = of_metrics(sides, columns, targets, draws(len(sides), RESAMPLES), RESAMPLES_SEED)
        made = {
            key: Difference(dict(point), variant, less, key, *measured[key], shown.compared)
            for key in shown.every
            if key in measured
        }
        # A metric that could not be compared still counts among those that were looked at.
        corrected = holm([made[key].p if key in made else 1.0 for key in shown.metrics])
        p_values = dict(zip(shown.metrics, corrected, strict=True))
        found += [replace(one, corrected=p_values.get(key), matched=matched.get(key)) for key, one in made.items()]
    return found, left


def _scores_of_rows(
    rows: Sequence[Row], shown: Shown, runs: Mapping[str, Run], left: dict[str, list[str]]
) -> dict[tuple[str, str], dict[str, pd.DataFrame]]:
    """The scores by example of each experiment and variant; `left` gets what DVC's cache lacks."""
    tables = {}
    for row in rows:
        known = scores(runs[row.experiment], row.variant, shown.scorers)
        if lacking := [name for name in shown.scorers if name not in known]:
            left.setdefault(NOT_CACHED, []).append(f"{row.experiment} ({row.variant}: {', '.join(lacking)})")
        tables[row.experiment, row.variant] = known
    return tables


def _compared_rows(
    rows: Sequence[Row], shown: Shown, left: dict[str, list[str]]
) -> dict[tuple[Any, str, str], list[tuple[Row, Row]]]:
    """(Point, variant, what it is compared with) to both rows of each seed; `left` gets the rows without another."""
    groups: dict[tuple[Any, str, str], list[tuple[Row, Row]]] = {}
    for row, other, less in of_variants(rows, shown) if shown.compared is None else of_values(rows, shown):
        if other is None:
            left.setdefault(f"{less} has not finished with the same seed and values", []).append(row.experiment)
        else:
            groups.setdefault((tuple(row.point.items()), row.variant, less), []).append((row, other))
    return groups


def _sides(
    row: Row,
    other: Row,
    runs: Mapping[str, Run],
    tables: Mapping[tuple[str, str], dict[str, pd.DataFrame]],
    left: dict[str, list[str]],
) -> tuple[Tables, Tables]:
    """The scores of two rows by the scorers that measured both alike; `left` gets why others did not."""
    ours, theirs = tables[row.experiment, row.variant], tables[other.experiment, other.variant]
    alike = {}
    for scorer in ours:
        if scorer not in theirs:
            continue
        differ = differing(*(runs[one.experiment].signature(scorer, one.variant) for one in (other, row)))
        if differ:
            left.setdefault(f"measured differently ({', '.join(differ)})", []).append(row.experiment)
        else:
            alike[scorer] = theirs[scorer]
    return ours, alike


def of_values(rows: Sequence[Row], shown: Shown) -> Iterator[tuple[Row, Row | None, str]]:
    """Each row that has a reference, the row of each such setting or value of x if it has finished, and its name."""
    axis = str(shown.compared)

    def others(row: Row) -> tuple[Any, ...]:
        return row.variant, row.seed, *(item for item in row.point.items() if item[0] != axis)

    of = {(row.point[axis], others(row)): row for row in rows}
    for row in rows:
        for less in shown.references_of(row.point[axis]):
            yield row, of.get((less, others(row))), less if isinstance(less, str) else f"{less:g}"


def of_variants(rows: Sequence[Row], shown: Shown) -> Iterator[tuple[Row, Row, str]]:
    """Each row, that of each variant before it in the same experiment, and the name of that variant."""
    of = {(row.experiment, row.variant): row for row in rows}
    for row in rows:
        for less in shown.variants[: shown.variants.index(row.variant)]:
            if other := of.get((row.experiment, less)):
                yield row, other, less


def scores(run: Run, variant: str, scorers: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The scores by example of a variant by each of the scorers that has some; `acc` of MMLU is `mmlu`."""
    read = {scorer: run.table(scores_file(scorer, variant).path) for scorer in scorers}
    return {
        scorer: found.rename(columns={"acc": MMLU}).set_index("id").sort_index()
        for scorer, found in read.items()
        if found is not None
    }


def paired(sides: Mapping[int, tuple[Tables, Tables]], targets: Any) -> dict[str, Measured]:
    """The mean difference over seeds: interval, p-value, the difference of each seed, and the number of examples.

    Args:
        sides: seed to the scores of both sides, with the ids as index.
        targets: how an example's id contains that of its dialogue; the examples of a dialogue are drawn together.

    Returns:
        By metric, of the seeds that have examples in common; those that all of them have on both sides.
    """
    found: dict[str, Measured] = {}
    for scorer in sorted({name for pair in sides.values() for side in pair for name in side}):
        pairs = {
            seed: (ours[scorer], theirs[scorer])
            for seed, (ours, theirs) in sides.items()
            if scorer in ours and scorer in theirs and not ours[scorer].index.intersection(theirs[scorer].index).empty
        }
        if pairs:
            found |= _of_scorer(pairs, "last" if scorer == MMLU else targets)
    return found


def _of_scorer(pairs: Mapping[int, tuple[pd.DataFrame, pd.DataFrame]], targets: Any) -> dict[str, Measured]:
    common = {seed: ours.index.intersection(theirs.index) for seed, (ours, theirs) in pairs.items()}
    ids = sorted({str(name) for names in common.values() for name in names})
    place = {name: i for i, name in enumerate(ids)}
    # Where each seed's examples are among all: seeds may have other ones, of which `generate.limit` draws some.
    places = [np.array([place[str(name)] for name in names], dtype=int) for names in common.values()]
    sides = [paired_columns(*(side.loc[common[seed]] for side in pair)) for seed, pair in pairs.items()]

    def measure(weights: Numbers) -> list[dict[str, Numbers]]:
        """The (R,) differences of each seed, by metric."""
        return [
            _less(*(with_means(metrics(side, weights[:, at])) for side in pair))
            for pair, at in zip(sides, places, strict=True)
        ]

    once = measure(np.ones((1, len(ids))))
    names = [name for name in once[0] if all(name in of_seed for of_seed in once)]
    parts = [
        measure(w)
        for w in resample_weights(len(ids), RESAMPLES, RESAMPLES_SEED, [dialogue_of(i, targets) for i in ids])
    ]
    drawn = draws(len(pairs), RESAMPLES)
    found: dict[str, Measured] = {}
    for name in names:
        by_seed = np.array([np.concatenate([part[k][name] for part in parts]) for k in range(len(pairs))])
        means = means_over_seeds(by_seed, drawn)
        if not len(means):
            continue
        low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        each = {seed: float(values[name][0]) for seed, values in zip(pairs, once, strict=True)}
        found[name] = (float(low), float(high), p_value(means), each, _with_a_value(name, sides, places, len(ids)))
    return found


def _with_a_value(
    metric: str, sides: Sequence[tuple[Columns, Columns]], places: Sequence[NDArray[np.intp]], examples: int
) -> int:
    """The number of examples with which any seed has the metric; BLEU and the like are of all examples."""
    column = MEANS.get(metric, (metric,))[0]
    has = np.zeros(examples, dtype=bool)
    for (ours, _), at in zip(sides, places, strict=True):
        has[at[~np.isnan(ours[column])] if column in ours else at] = True
    return int(has.sum())


def _less(ours: Mapping[str, Numbers], theirs: Mapping[str, Numbers]) -> dict[str, Numbers]:
    return {name: ours[name] - theirs[name] for name in ours if name in theirs}


def with_means(values: dict[str, Numbers]) -> dict[str, Numbers]:
    """The values of metrics, and the means of `MEANS`."""
    complete = {key: parts for key, parts in MEANS.items() if values.keys() >= set(parts)}
    return values | {key: np.mean([values[part] for part in parts], axis=0) for key, parts in complete.items()}


def draws(seeds: int, resamples: int) -> Numbers:
    """The share of each of K seeds in each of R resamples, (R, K): of K - 1 draws, of a single seed 1."""
    if seeds == 1:
        return np.ones((resamples, 1))
    drawn = np.random.default_rng(RESAMPLES_SEED + 1).integers(seeds, size=(resamples, seeds - 1))
    shares: Numbers = (drawn[:, :, None] == np.arange(seeds)).mean(axis=1)
    return shares
