"""How close the replies of a model are to people's in the stages of DBT, and how far they show any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attune.classifiers.dbt.classifier import STAGES

Rows = Sequence[Sequence[float]]


def per_example(predictions: Rows, references: Rows) -> dict[str, list[float]]:
    """The columns of N examples, all times 100.

    Args:
        predictions: of `dbt.probabilities`, (N, 5), for the replies.
        references: the same for the human replies.

    Returns:
        `dbt_diff`: the mean over the stages of the squared difference of the two probabilities; `dbt_adherence`: 1 less
        the probability of no stage; `dbt_<stage>` and `dbt_reference_<stage>`: the probabilities.

    Raises:
        ValueError: there are not as many on both sides.
    """
    pairs = list(zip(predictions, references, strict=True))
    places = list(enumerate(STAGES))
    return {
        "dbt_diff": [100 * sum((own[i] - other[i]) ** 2 for i, _ in places) / len(places) for own, other in pairs],
        "dbt_adherence": [100 * sum(own[: len(places)]) for own, _ in pairs],
        **{f"dbt_{stage}": [100 * own[i] for own, _ in pairs] for i, stage in places},
        **{f"dbt_reference_{stage}": [100 * other[i] for _, other in pairs] for i, stage in places},
    }


def metrics(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """`dbt_gap` and the means of the columns of `per_example`.

    `dbt_gap` is the mean over the stages of the absolute difference between the replies' mean probability and the human
    replies' (after Son and So, table 1, whose formula is not printed).

    Raises:
        ValueError: there are no examples.
    """
    if not columns["dbt_diff"]:
        raise ValueError("no examples")
    means = {name: sum(column) / len(column) for name, column in columns.items()}
    gaps = [abs(means[f"dbt_{stage}"] - means[f"dbt_reference_{stage}"]) for stage in STAGES]
    return {"dbt_gap": sum(gaps) / len(gaps), **means}
