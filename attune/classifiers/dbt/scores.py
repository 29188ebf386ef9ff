"""Metrics of the stages of DBT: their distance to the human replies, and adherence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attune.classifiers.dbt.classifier import STAGES

Rows = Sequence[Sequence[float]]


def per_example(predictions: Rows, references: Rows) -> dict[str, list[float]]:
    """The columns of N examples, all times 100.

    Args:
        predictions: (N, 5) probabilities, of `classifier.probabilities`, for the replies.
        references: the same for the human replies.

    Returns:
        `dbt_diff`: the mean over the stages of the squared difference of the two probabilities; `dbt_adherence`: the
        probability of any stage; `dbt_<stage>` and `dbt_reference_<stage>`: the probabilities.

    Raises:
        ValueError: the numbers of replies and human replies differ.
    """
    pairs = list(zip(predictions, references, strict=True))
    stages = range(len(STAGES))
    return {
        "dbt_diff": [100 * sum((p[i] - q[i]) ** 2 for i in stages) / len(stages) for p, q in pairs],
        "dbt_adherence": [100 * sum(p[: len(stages)]) for p, _ in pairs],
        **{f"dbt_{stage}": [100 * p[i] for p, _ in pairs] for i, stage in enumerate(STAGES)},
        **{f"dbt_reference_{stage}": [100 * q[i] for _, q in pairs] for i, stage in enumerate(STAGES)},
    }


def metrics(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """`dbt_gap` and the means of the columns of `per_example`.

    `dbt_gap` is the mean over the stages of the absolute difference between the mean probability in the replies and in
    the human replies (after Son and So, table 1, who print no formula).

    Raises:
        ValueError: there are no examples.
    """
    if not columns["dbt_diff"]:
        raise ValueError("no examples")
    means = {name: sum(column) / len(column) for name, column in columns.items()}
    gaps = [abs(means[f"dbt_{stage}"] - means[f"dbt_reference_{stage}"]) for stage in STAGES]
    return {"dbt_gap": sum(gaps) / len(gaps), **means}
