"""The paired differences of a study's settings to its reference setting, with intervals over seeds and examples.

Runs of two settings with the same seed differ in the settings alone, and answer the same examples. So the difference
of each seed is paired by example, and the mean over the seeds is resampled in both: seeds, and examples in common to
both settings and to all seeds (a bootstrap of crossed factors, Owen 2007, arXiv:0712.1111). Of K seeds K - 1 are drawn,
since K draws would have (K - 1) / K of their variance (Rao and Wu 1988, JASA 83).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from attune.data.dialogue import dialogue_of
from attune.report.changes import ALPHA
from attune.report.charts import COLOURS, ROW, Chart, as_png, as_svg, specification, standing, static
from attune.report.results import MMLU, of_replies, scores_file
from attune.report.tables import VARIANT_COLUMNS, Metrics, direction, star, table
from attune.runtime.io import csv_text
from attune.scoring.intervals.bootstrap import LEVEL, Numbers, columns, metrics, resample_weights
from attune.scoring.intervals.significance import holm, p_value
from attune.tools.runs import Run, revision
from attune.tools.study_plan import SETTING, Shown

if TYPE_CHECKING:
    import pandas as pd

    from attune.tools.study_results import Row

MEANS = {"diff_epitome": ("diff_er", "diff_ex", "diff_ip")}
"""Metrics of a study alone: EmPO's figures 2 and 3 average diff-EPITOME over its mechanisms."""
COLUMNS = VARIANT_COLUMNS | {"diff_epitome": ("diff-EPITOME ↓", 3)}
SEED, RESAMPLES = 0, 2000

Tables = Mapping[str, "pd.DataFrame"]
"""Scorer to scores by example."""
Measured = tuple[float, float, float, dict[int, float], int]
"""The ends of the interval, the p-value, the difference of each seed, and the number of examples."""


@dataclass(frozen=True)
class Difference:
    """A metric at a point of the grid, less that of the reference setting: the mean over seeds, its 95 % interval, the
    p-value, the difference of each seed, and the number of examples that any of them has. `corrected` is the p-value
    corrected for the number of metrics (Holm 1979)."""

    point: dict[str, Any]
    variant: str
    metric: str
    low: float
    high: float
    p: float
    by_seed: dict[int, float]
    examples: int
    corrected: float = 1.0

    @property
    def value(self) -> float:
        """The mean over the seeds."""
        return fmean(self.by_seed.values())


def differences(rows: Sequence[Row], shown: Shown) -> tuple[list[Difference], list[str]]:
    """The differences of each point's rows to the rows with the reference setting and the same other axes and seed.

    Args:
        rows: of the study's experiments.
        shown: variants, metrics and reference.

    Returns:
        In the order of the rows, and the experiments whose scores by example are not in DVC's cache.

    Raises:
        UserError: a file of scores cannot be read.
    """
    runs = {row.experiment: revision(row.revision) for row in rows}
    tables = {(row.experiment, row.variant): scores(runs[row.experiment], row.variant, shown.metrics) for row in rows}
    missing = sorted({experiment for (experiment, _), found in tables.items() if not found})
    there = [row for row in rows if tables[row.experiment, row.variant]]
    base = {(_others(row.point), row.variant, row.seed): row for row in there if row.point[SETTING] == shown.reference}
    groups: dict[tuple[Any, str], list[tuple[Row, Row]]] = {}
    for row in there:
        other = base.get((_others(row.point), row.variant, row.seed))
        if other is not None and row.point[SETTING] != shown.reference:
            groups.setdefault((tuple(row.point.items()), row.variant), []).append((row, other))
    found = []
    for (point, variant), pairs in groups.items():
        targets = runs[pairs[0][0].experiment].params["context"]["targets"]
        sides = {row.seed: (tables[row.experiment, variant], tables[other.experiment, variant]) for row, other in pairs}
        measured = paired(sides, targets)
        of_setting = [Difference(dict(point), variant, key, *measured[key]) for key in shown.metrics if key in measured]
        corrected = holm([one.p for one in of_setting])
        found += [replace(one, corrected=p) for one, p in zip(of_setting, corrected, strict=True)]
    return found, missing


def _others(point: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in point.items() if key != SETTING)


def scores(run: Run, variant: str, wanted: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The scores by example of a variant by each scorer that has some; `acc` of MMLU is `mmlu`.

    Args:
        run: an experiment.
        variant: a key of its variants.
        wanted: metrics; MMLU's scores are read where they are among them.
    """
    scorers = [*of_replies(run.keys("scorers")), *([MMLU] if MMLU in wanted else [])]
    read = {scorer: run.table(scores_file(scorer, variant).path) for scorer in scorers}
    return {
        scorer: found.rename(columns={"acc": MMLU}).set_index("id").sort_index()
        for scorer, found in read.items()
        if found is not None
    }


def paired(sides: Mapping[int, tuple[Tables, Tables]], targets: Any) -> dict[str, Measured]:
    """The mean difference over seeds: interval, p-value, the difference of each seed, and the number of examples.

    Args:
        sides: seed to the scores of a setting and of the reference setting, with the ids as index.
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
    sides = [tuple(columns(side.loc[common[seed]]) for side in pair) for seed, pair in pairs.items()]

    def measure(weights: Numbers) -> list[dict[str, Numbers]]:
        """The (R,) differences of each seed, by metric."""
        return [
            _less(*(with_means(metrics(side, weights[:, at])) for side in pair))
            for pair, at in zip(sides, places, strict=True)
        ]

    once = measure(np.ones((1, len(ids))))
    names = [name for name in once[0] if all(name in of_seed for of_seed in once)]
    parts = [measure(w) for w in resample_weights(len(ids), RESAMPLES, SEED, [dialogue_of(i, targets) for i in ids])]
    drawn = draws(len(pairs), RESAMPLES)
    found: dict[str, Measured] = {}
    for name in names:
        by_seed = np.array([np.concatenate([part[k][name] for part in parts]) for k in range(len(pairs))])
        means = (drawn.T * by_seed).sum(axis=0)
        # A resample without an example that has the metric says nothing.
        means = means[~np.isnan(means)]
        low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        each = {seed: float(values[name][0]) for seed, values in zip(pairs, once, strict=True)}
        found[name] = (float(low), float(high), p_value(means), each, len(ids))
    return found


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
    drawn = np.random.default_rng(SEED + 1).integers(seeds, size=(resamples, seeds - 1))
    shares: Numbers = (drawn[:, :, None] == np.arange(seeds)).mean(axis=1)
    return shares


def as_csv(found: Sequence[Difference]) -> str:
    """A line for each metric of each variant and point."""
    keys = list(found[0].point) if found else [SETTING]
    rows = []
    for one in found:
        each = (" ".join(map(str, values)) for values in (one.by_seed, one.by_seed.values()))
        numbers = (one.value, one.low, one.high, one.p, one.corrected, one.examples)
        rows.append([*one.point.values(), one.variant, one.metric, *numbers, *each])
    columns_after = ("difference", "low", "high", "p", "p_holm", "examples", "seeds", "by_seed")
    return csv_text([*keys, "variant", "metric", *columns_after], rows)


def text(found: Sequence[Difference], missing: Sequence[str], shown: Shown, name: str) -> str:
    """The differences as a section of the study's page."""
    rows: dict[str, Metrics] = {}
    notes: dict[str, dict[str, str]] = {}
    for one in found:
        digits = COLUMNS[one.metric][1]
        rows.setdefault(label(one), {})[one.metric] = one.value
        mark = "**" if one.corrected < ALPHA else star(one.low, one.high)
        interval = f" ({one.low:+.{digits}f} to {one.high:+.{digits}f}){mark}"
        notes.setdefault(label(one), {})[one.metric] = interval
    seeds = min((len(one.by_seed) for one in found), default=0)
    parts = [f"## Differences to `{shown.reference}`"]
    if found:
        parts += [
            table("", rows, {key: COLUMNS[key] for key in shown.metrics}, notes),
            f"Each setting less `{shown.reference}` with the same seed on the same examples, mean over the seeds; in "
            "brackets the 95 % interval of a bootstrap that draws seeds and, in common to both settings, examples; "
            "star: it excludes 0; two stars: also where the p-values of a setting are corrected for the number of its "
            f"metrics (Holm 1979). {_few(seeds)} Each seed's difference, and the p-values: "
            f"[{name}.differences.csv]({name}.differences.csv).",
        ]
    elif not missing:
        parts.append(f"No setting has finished with a seed that `{shown.reference}` has finished with.")
    if missing:
        parts.append(
            f"Not compared, since their scores by example are not in DVC's cache here: {', '.join(missing)}. `dvc exp "
            "pull` or a new run brings them."
        )
    return "\n\n".join(parts)


def _few(seeds: int) -> str:
    """What so few seeds cannot tell."""
    if seeds == 1:
        return "With one seed the interval is over the examples alone."
    share = 100 * 0.5 ** (seeds - 1)
    return (
        f"All {seeds} seeds lie on one side of the truth in {share:.3g} % of studies, and no interval goes far beyond "
        "what they span."
    )


def label(one: Difference) -> str:
    """A row of the table."""
    return ", ".join([*(str(value) for value in one.point.values()), one.variant])


def figure(found: Sequence[Difference], shown: Shown) -> dict[str, bytes]:
    """The figure as SVG and PNG: a panel for each metric, a dot with its interval for each setting."""
    panels = [_panel([one for one in found if one.metric == metric], shown) for metric in shown.metrics]
    drawn = static([panel for panel in panels if panel is not None], columns=2, width=260)
    return {"svg": as_svg(drawn).encode(), "png": as_png(drawn)}


def _panel(found: Sequence[Difference], shown: Shown) -> Chart | None:
    """Of one metric; a small dot for each seed, a dashed line where there is no difference."""
    import altair as alt

    if not found:
        return None
    heading, digits = COLUMNS[found[0].metric]
    rows: list[dict[str, Any]] = []
    for one in found:
        name = ", ".join(map(str, one.point.values())) + (f", {one.variant}" if len(shown.variants) > 1 else "")
        ends = {f"{one.metric}.diff_low": one.low, f"{one.metric}.diff_high": one.high}
        stands = standing(name, ends, one.metric, direction(heading), "")
        rows.append({"setting": name, "value": one.value, "low": one.low, "high": one.high, "stands": stands})
    each = [
        {"setting": row["setting"], "value": value}
        for row, one in zip(rows, found, strict=True)
        for value in one.by_seed.values()
    ]

    def of(values: Sequence[Mapping[str, Any]]) -> Any:
        y = alt.Y("setting:N", sort=[row["setting"] for row in rows], title=None)
        return alt.Chart(alt.InlineData(values=list(values))).encode(y=y)

    colour = alt.Color("stands:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), legend=None)
    x = alt.X(
        "value:Q", title=f"difference to {shown.reference}", scale=alt.Scale(padding=8), axis=alt.Axis(tickCount=4)
    )
    zero = alt.Chart(alt.InlineData(values=[{"value": 0}])).mark_rule(strokeDash=[4, 4], color="#8a8a8a")
    layers = (
        zero.encode(x=x),
        of(rows).mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", color=colour),
        of(rows).mark_point(filled=True, size=70, opacity=1).encode(x=x, color=colour),
        of(each).mark_circle(size=14, color="#333333", opacity=1).encode(x=x),
    )
    words = ", ".join(
        f"{row['setting']} {row['value']:+.{digits}f} ({row['low']:+.{digits}f} to {row['high']:+.{digits}f})"
        for row in rows
    )
    spec = specification(alt.layer(*layers).properties(height=ROW * len(rows)))
    return Chart(heading, spec, f"{heading}, less {shown.reference}: {words}.")
