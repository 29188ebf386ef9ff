"""Behaviours of a counsellor, and adherence to motivational interviewing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from attune.config.schema import Hardware, Params
    from attune.data.dialogue import Example


def train(params: Params, checkpoints: Path, target: Path) -> dict[str, float]:
    """Train the two classifiers and write `target`; returns their metrics."""
    from attune.classifiers.behaviour.learn import learn

    return learn(params, checkpoints, target)


def label_references(folder: Path, examples: Sequence[Example], hardware: Hardware) -> dict[str, list[Any]]:
    """Columns `id` and `LABELS` of the human replies."""
    from attune.classifiers.behaviour.classifier import LABELS, probabilities
    from attune.classifiers.common.turn_scores import reference_columns

    return reference_columns(probabilities, LABELS, folder, examples, hardware)


def score(folder: Path, replies: pd.DataFrame, references: pd.DataFrame, hardware: Hardware) -> dict[str, list[float]]:
    """The columns of `scores.per_example`."""
    from attune.classifiers.behaviour.classifier import LABELS, probabilities
    from attune.classifiers.behaviour.scores import per_example
    from attune.classifiers.common.turn_scores import reference_rows, reply_rows

    return per_example(reply_rows(probabilities, folder, replies, hardware), reference_rows(LABELS, references))


def metrics(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The reflection-to-question ratios and the means of the columns of `score`."""
    from attune.classifiers.behaviour.scores import metrics

    return metrics(columns)


def signature(folder: Path) -> dict[str, str]:
    """The origin of the two classifiers."""
    from attune.classifiers.behaviour.classifier import signature

    return signature(folder)
