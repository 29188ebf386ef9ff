"""The four stages of dialectical behaviour therapy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from attune.config.schema import Hardware, Params
    from attune.data.dialogue import Example


def train(params: Params, checkpoints: Path, target: Path) -> dict[str, float]:
    """Train the classifier and write `target`; returns its metrics."""
    from attune.classifiers.dbt.learn import learn

    return learn(params, checkpoints, target)


def label_references(folder: Path, examples: Sequence[Example], hardware: Hardware) -> dict[str, list[Any]]:
    """Columns `id` and `LABELS` of the human replies."""
    from attune.classifiers.common.turn_scores import reference_columns
    from attune.classifiers.dbt.classifier import LABELS, probabilities

    return reference_columns(probabilities, LABELS, folder, examples, hardware)


def score(folder: Path, replies: pd.DataFrame, references: pd.DataFrame, hardware: Hardware) -> dict[str, list[float]]:
    """The columns of `scores.per_example`."""
    from attune.classifiers.common.turn_scores import reference_rows, reply_rows
    from attune.classifiers.dbt.classifier import LABELS, probabilities
    from attune.classifiers.dbt.scores import per_example

    return per_example(reply_rows(probabilities, folder, replies, hardware), reference_rows(LABELS, references))


def metrics(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """`dbt_gap` and the means of the columns of `score`."""
    from attune.classifiers.dbt.scores import metrics

    return metrics(columns)


def signature(folder: Path) -> dict[str, str]:
    """The origin of the classifier."""
    from attune.classifiers.dbt.classifier import signature

    return signature(folder)
