"""Intervals by the paired bootstrap over the test examples, clustered by dialogue.

The examples of one dialogue are resampled together, as a cluster (Davison and Hinkley 1997, section 3.8): they share a
client and a therapist and carry less information than as many examples of different dialogues. Every metric here is a
function of sums over examples. So a resample is a vector of weights (how often each example was drawn), and a thousand
resamples are one matrix product. Both variants get the same resamples (Koehn 2004), so that examples that
are easy or hard for both do not widen the interval of their difference.

The intervals cover the choice of test dialogues. They do not cover the choice of a training seed.
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
"""Prefix of the columns with EPITOME's levels of the human replies."""
DISTANCE = "_distance"
"""Suffix of the names of `distances`."""
MAX_WEIGHTS = 4_000_000
"""Weights in memory at once, so that memory is independent of the number of resamples."""


def metrics(columns: Columns, weights: Numbers) -> dict[str, Numbers]:
    """The (R,) values of each metric under (R, N) weights of the examples; NaN if no weighted example has a value."""
    counts = {name: column for name, column in columns.items() if name.startswith("bleu_")}
    means = {name: _mean(column, weights) for name, column in columns.items() if name not in counts}
    bleu = {f"bleu_{n}": corpus_bleu(counts, weights, n) for n in ORDERS} if counts else {}
    # The human replies get no metric of their own, but `dbt_gap` needs their means over the same resample.
    human = {name: means.pop(name) for name in list(means) if HUMAN in name or name.startswith(REFERENCE)}
    gaps = [np.abs(means[name.replace(HUMAN, "_")] - mean) for name, mean in human.items() if name.startswith(DBT)]
    return bleu | ({"dbt_gap": np.mean(gaps, axis=0)} if gaps else {}) | _ratio(columns, weights) | means


def distances(columns: Columns, weights: Numbers) -> dict[str, Numbers]:
    """Absolute differences between a variant's metrics and those of the human replies to the same examples.

    Args:
        columns: as in `intervals`.
        weights: (R, N).

    Returns:
        `<metric>_distance`, (R,), for each metric that has columns of both.
    """
    # BLEU's column `bleu_reference_words` has the same infix, but is no metric of the human replies.
    human = {
        name.replace(HUMAN, "_"): column
        for name, column in columns.items()
        if HUMAN in name and not name.startswith("bleu_")
    }
    levels = {name.removeprefix(REFERENCE): column for name, column in columns.items() if name.startswith(REFERENCE)}
    model, people = metrics(columns, weights), metrics(human | levels, weights)
    return {f"{name}{DISTANCE}": np.abs(model[name] - people[name]) for name in people if name in model}


def intervals(
    scores: Columns,
    reference: Columns | None,
    resamples: int,
    seed: int,
    clusters: Sequence[str] | None = None,
    measure: Callable[[Columns, Numbers], dict[str, Numbers]] = metrics,
) -> dict[str, float]:
    """95 % percentile intervals of every metric, and of its difference to the same metric of a reference variant.

    Args:
        scores: a variant's scores by example: column to (N,) values. NaN if an example has none; the mean is then over
            the others. BLEU is computed from the columns of `overlap.bleu_counts`, `dbt_gap` and
            `behaviour_reflection_to_question` from those of the classifiers.
        reference: the same of the reference variant, with the same examples in the same order; None: no differences.
        resamples: R.
        seed: of the resamples; the same examples in the same order get the same resamples for every variant.
        clusters: (N,) names of the clusters, the dialogue of each example; None: each example is its own cluster.
        measure: computes (R,) values of each metric from columns and (R, N) weights.

    Returns:
        Sorted by name: `<metric>.low` and `<metric>.high`; for each metric of both variants also `<metric>.diff`
        (variant minus reference), `<metric>.diff_low` and `<metric>.diff_high`.

    Raises:
        ValueError: no examples, or the two variants have different numbers of examples.
    """
    sizes = {len(column) for columns in (scores, reference or {}) for column in columns.values()}
    if len(sizes) != 1 or not min(sizes):
        raise ValueError(f"columns of {sorted(sizes)} examples: expected as many in each, some")
    examples = min(sizes)
    once = np.ones((1, examples))
    values, reference_values = measure(scores, once), measure(reference, once) if reference else {}
    results = {
        f"{name}.diff": float(values[name][0] - reference_values[name][0])
        for name in values
        if name in reference_values
    }
    parts = []
    for weights in resample_weights(examples, resamples, seed, clusters):
        resampled = measure(scores, weights)
        resampled_reference = measure(reference, weights) if reference else {}
        shared = [name for name in resampled if name in resampled_reference]
        differences = {f"{name}.diff_": resampled[name] - resampled_reference[name] for name in shared}
        parts.append({f"{name}.": values for name, values in resampled.items()} | differences)
    for name in parts[0]:
        results |= _bounds(name, [part[name] for part in parts])
    return dict(sorted(results.items()))


def columns(scores: pd.DataFrame) -> Columns:
    """The numeric columns, without those that are NaN for every example."""
    numbers = scores.select_dtypes("number").dropna(axis="columns", how="all")
    return {str(name): numbers[name].to_numpy(dtype=float) for name in numbers}


def resample_weights(
    examples: int, resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> Iterator[Numbers]:
    """How often each of N examples is drawn in each resample, in parts of (r, N) weights.

    Args:
        examples: N.
        resamples: the sum of r over the parts.
        seed: of the draws.
        clusters: (N,), as in `intervals`. Of C clusters C are drawn, so that a resample has N examples on average only.
    """
    count, members = (examples, np.arange(examples)) if clusters is None else _cluster_indices(clusters)
    rng = np.random.default_rng(seed)
    step = max(1, MAX_WEIGHTS // examples)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        # One bincount over all rows: row i counts the values i * count to (i + 1) * count - 1.
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)
        yield counts[:, members]


def _cluster_indices(clusters: Sequence[str]) -> tuple[int, NDArray[np.intp]]:
    """The number of clusters, and the index of each example's cluster, in the order of first occurrence."""
    indices = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    return len(indices), np.array([indices[name] for name in clusters])


def _ratio(columns: Columns, weights: Numbers) -> dict[str, Numbers]:
    """Reflections to questions, as `attune.classifiers.behaviour.scores.reflection_to_question` defines it."""
    if f"{BEHAVIOUR}questions" not in columns:
        return {}
    reflections, questions = (weights @ columns[f"{BEHAVIOUR}{name}"] / 100 for name in ("reflections", "questions"))
    return {f"{BEHAVIOUR}reflection_to_question": reflections / np.maximum(questions, 1)}


def corpus_bleu(counts: Columns, weights: Numbers, order: int) -> Numbers:
    """BLEU-`order` of the weighted examples, 0 to 100, with sacrebleu's default smoothing ("exp").

    Args:
        counts: of `overlap.bleu_counts`, (N,) each; an example with NaN, which has no reference, is not counted.
        weights: (R, N).
    """
    sums: dict[str, Any] = {name: weights @ np.nan_to_num(column) for name, column in counts.items()}
    log_precisions, zeros = np.zeros(len(weights)), np.zeros(len(weights))
    with np.errstate(divide="ignore", invalid="ignore"):
        for n in range(1, order + 1):
            match, total = sums[f"bleu_match_{n}"], sums[f"bleu_total_{n}"]
            # Smoothing: the first order without a match counts 1/2 match, the second 1/4, and so on.
            zeros += match == 0
            log_precisions += np.log(np.where(match > 0, match, 0.5**zeros) / total)
        log_brevity = np.minimum(0, 1 - sums["bleu_reference_words"] / sums["bleu_reply_words"])
        score = 100 * np.exp(log_precisions / order + log_brevity)
    matched = np.sum([sums[f"bleu_match_{n}"] for n in range(1, order + 1)], axis=0) > 0
    # As sacrebleu: no match in any order, or no n-gram of the highest order, is 0.
    return np.where(matched & (sums[f"bleu_total_{order}"] > 0), score, 0.0)


def _mean(column: Numbers, weights: Numbers) -> Numbers:
    """Weighted means, (R,), over the examples with a value."""
    has_value = ~np.isnan(column)
    with np.errstate(invalid="ignore"):
        mean: Numbers = (weights @ np.where(has_value, column, 0)) / (weights @ has_value.astype(float))
    return mean


def _bounds(name: str, values: list[Numbers]) -> dict[str, float]:
    """The percentiles that hold `LEVEL` of the resamples; resamples without a value are left out."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(np.concatenate(values), [tail, 100 - tail])
    return {f"{name}low": float(low), f"{name}high": float(high)}
