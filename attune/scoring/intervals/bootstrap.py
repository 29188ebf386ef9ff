"""Intervals by the paired bootstrap: the test examples are drawn again, with replacement, and the metric computed anew.

Several examples of one dialogue are drawn together, as one cluster (Davison and Hinkley 1997, section 3.8): they share
client and therapist, so each tells less than an example of its own dialogue. Every metric here is a function of sums
over examples, so a draw is a vector of weights (how often each example came up) and a thousand draws are one matrix
product. Both variants are weighed by the same draws (Koehn 2004): what makes an
example easy or hard for both does not widen the interval of their difference.

What an interval covers is the choice of test dialogues. It says nothing of another training seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Numbers = NDArray[np.float64]
Columns = Mapping[str, Numbers]

LEVEL = 0.95
ORDERS = (1, 2, 3, 4)
DBT, BEHAVIOUR, HUMAN = "dbt_", "behaviour_", "_reference_"
REFERENCE = "reference_"
"""What the columns of the human replies' levels begin with."""
DISTANCE = "_distance"
"""What the names of `distances` end with."""
CELLS = 4_000_000
"""Weights held at once, so that memory does not grow with the number of draws."""


def metrics(columns: Columns, weights: Numbers) -> dict[str, Numbers]:
    """Metric to its (R,) values under (R, N) weights of the examples; NaN where no weighed example has a value."""
    counts = {name: column for name, column in columns.items() if name.startswith("bleu_")}
    means = {name: _mean(column, weights) for name, column in columns.items() if name not in counts}
    bleu = {f"bleu_{n}": corpus_bleu(counts, weights, n) for n in ORDERS} if counts else {}
    # The human replies have no metric of their own, but the gap to them hangs on which examples are drawn.
    human = {name: means.pop(name) for name in list(means) if HUMAN in name or name.startswith(REFERENCE)}
    gaps = [np.abs(means[name.replace(HUMAN, "_")] - mean) for name, mean in human.items() if name.startswith(DBT)]
    return bleu | ({"dbt_gap": np.mean(gaps, axis=0)} if gaps else {}) | _ratio(columns, weights) | means


def distances(columns: Columns, weights: Numbers) -> dict[str, Numbers]:
    """How far a variant's metrics are from those of the human replies to the same examples, |own - people|.

    Args:
        columns: as in `intervals`.
        weights: (R, N).

    Returns:
        `<metric>_distance` to (R,) values, for each metric whose columns both have.
    """
    # BLEU's counts of the reference's words carry the same infix and are no metric of it.
    human = {
        name.replace(HUMAN, "_"): column
        for name, column in columns.items()
        if HUMAN in name and not name.startswith("bleu_")
    }
    levels = {name.removeprefix(REFERENCE): one for name, one in columns.items() if name.startswith(REFERENCE)}
    own, people = metrics(columns, weights), metrics(human | levels, weights)
    return {f"{name}{DISTANCE}": np.abs(own[name] - people[name]) for name in people if name in own}


def intervals(
    own: Columns,
    other: Columns | None,
    resamples: int,
    seed: int,
    groups: Sequence[str] | None = None,
    measure: Callable[[Columns, Numbers], dict[str, Numbers]] = metrics,
) -> dict[str, float]:
    """95 % percentile intervals of every metric and of its difference to the same metric of another variant.

    Args:
        own: a variant's scores by example: metric to (N,) values, NaN where an example has none (it is then left out
            of the mean), the counts of `overlap.bleu_counts`, from which BLEU-1..4 are made, and the columns of
            `dbt_metrics.per_example` and `behaviour_metrics.per_example`, from which `dbt_gap` and
            `behaviour_reflection_to_question` are made, too.
        other: the same of the variant to compare to, row by row of the same examples; None: no differences.
        resamples: draws, R.
        seed: of the draws; the same examples in the same order are drawn for every variant.
        groups: (N,) names of what is drawn as a whole, the dialogue of each example; None: each example by itself.
        measure: what is computed of the columns under (R, N) weights.

    Returns:
        In the order of the names: for each metric `<metric>.low` and `<metric>.high`; with `other`, and where it has
        the metric, `<metric>.diff` (its value less the other's), `<metric>.diff_low`, `<metric>.diff_high`.

    Raises:
        ValueError: no examples, or another number of them in `other`.
    """
    sizes = {len(column) for columns in (own, other or {}) for column in columns.values()}
    if len(sizes) != 1 or not min(sizes):
        raise ValueError(f"columns of {sorted(sizes)} examples: expected as many in each, some")
    once, parts = np.ones((1, min(sizes))), []
    values, others = measure(own, once), measure(other, once) if other else {}
    found = {f"{name}.diff": float(values[name][0] - others[name][0]) for name in values if name in others}
    for weights in draws(min(sizes), resamples, seed, groups):
        drawn = measure(own, weights)
        reference = measure(other, weights) if other else {}
        differences = {f"{name}.diff_": drawn[name] - reference[name] for name in drawn if name in reference}
        parts.append({f"{name}.": values for name, values in drawn.items()} | differences)
    for name in parts[0]:
        found |= _bounds(name, [part[name] for part in parts])
    return dict(sorted(found.items()))


def columns(scores: pd.DataFrame) -> Columns:
    """The numbers of the examples by metric; what no example has is left out."""
    numbers = scores.select_dtypes("number").dropna(axis="columns", how="all")
    return {str(name): numbers[name].to_numpy(dtype=float) for name in numbers}


def draws(examples: int, resamples: int, seed: int, groups: Sequence[str] | None = None) -> Iterator[Numbers]:
    """How often each of (N,) examples is drawn in each of `resamples` draws, in parts of (r, N).

    Args:
        examples: N.
        resamples: draws.
        seed: of the draws.
        groups: (N,), as in `intervals`; of G groups G are drawn, so that a draw has N examples only on average.
    """
    named, members = (examples, np.arange(examples)) if groups is None else _members(groups)
    random = np.random.default_rng(seed)
    step = max(1, CELLS // examples)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = random.integers(named, size=(rows, named)) + named * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * named).reshape(rows, named).astype(float)
        yield counts[:, members]


def _members(groups: Sequence[str]) -> tuple[int, NDArray[np.intp]]:
    """How many groups there are, and the index of each example's, in the order in which they come up."""
    places = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    return len(places), np.array([places[name] for name in groups])


def _ratio(columns: Columns, weights: Numbers) -> dict[str, Numbers]:
    """Reflections to questions of the weighed examples, as `behaviour_metrics.reflection_to_question` counts them."""
    if f"{BEHAVIOUR}questions" not in columns:
        return {}
    reflections, questions = (weights @ columns[f"{BEHAVIOUR}{name}"] / 100 for name in ("reflections", "questions"))
    return {f"{BEHAVIOUR}reflection_to_question": reflections / np.maximum(questions, 1)}


def corpus_bleu(counts: Columns, weights: Numbers, order: int) -> Numbers:
    """BLEU-`order` of the weighed examples, 0..100, smoothed as sacrebleu does by default ("exp").

    Args:
        counts: of `overlap.bleu_counts`, (N,) each.
        weights: (R, N).
    """
    sums: dict[str, Any] = {name: weights @ column for name, column in counts.items()}
    logs, halvings = np.zeros(len(weights)), np.zeros(len(weights))
    with np.errstate(divide="ignore", invalid="ignore"):
        for n in range(1, order + 1):
            match, total = sums[f"bleu_match_{n}"], sums[f"bleu_total_{n}"]
            # The first order without a match counts ½ match, the second ¼.
            halvings += match == 0
            logs += np.log(np.where(match > 0, match, 0.5**halvings) / total)
        brevity = np.minimum(0, 1 - sums["bleu_reference_words"] / sums["bleu_reply_words"])
        score = 100 * np.exp(logs / order + brevity)
    matched = np.sum([sums[f"bleu_match_{n}"] for n in range(1, order + 1)], axis=0) > 0
    return np.where(matched & (sums[f"bleu_total_{order}"] > 0), score, 0.0)


def _mean(column: Numbers, weights: Numbers) -> Numbers:
    there = ~np.isnan(column)
    with np.errstate(invalid="ignore"):
        mean: Numbers = (weights @ np.where(there, column, 0)) / (weights @ there.astype(float))
    return mean


def _bounds(name: str, drawn: list[Numbers]) -> dict[str, float]:
    """The percentiles between which `LEVEL` of the draws lie; draws without a value are left out."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(np.concatenate(drawn), [tail, 100 - tail])
    return {f"{name}low": float(low), f"{name}high": float(high)}
