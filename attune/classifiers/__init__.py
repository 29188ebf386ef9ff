"""Classifiers that read replies: EPITOME, stages of DBT, behaviours of a counsellor.

Each package is a `Classifier`: a module of plain functions, which the stages import by its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import pandas as pd

    from attune.config.schema import Hardware, Params
    from attune.data.dialogue import Example


class Classifier(Protocol):
    """The functions of a package `attune.classifiers.<key>`."""

    def train(self, params: Params, checkpoints: Path, target: Path) -> dict[str, float]:
        """Train, write the folder `target`, and return the metrics on unseen examples, in percent.

        Args:
            params: of the run.
            checkpoints: folder for checkpoints; training resumes from the newest.
            target: the folder that the functions below read.

        Raises:
            DataError, ModelError: a source is missing or does not fit its format.
        """

    def label_references(self, folder: Path, examples: Sequence[Example], hardware: Hardware) -> dict[str, list[Any]]:
        """Labels of the human replies to the examples: columns of (N,) values, `id` first.

        Raises:
            ModelError: `folder` was not written by `train`.
        """

    def score(
        self, folder: Path, replies: pd.DataFrame, references: pd.DataFrame, hardware: Hardware
    ) -> dict[str, list[Any]]:
        """Scores of each example: columns of (N,) values. Several ranks share the examples; all must call it.

        Args:
            folder: that `train` wrote.
            replies: (N,) rows with the columns `context` and `reply`.
            references: (N,) rows of `label_references`, in the order of `replies`.
            hardware: device and precision.

        Raises:
            ModelError: `folder` was not written by `train`.
        """

    def metrics(self, columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """The metrics of a variant from the columns of `score`, unrounded.

        Raises:
            ValueError: there are no examples.
        """

    def signature(self, folder: Path) -> dict[str, str]:
        """What explains the metrics: the classifier in `folder`, its training data and its encoder."""


if TYPE_CHECKING:
    from attune.classifiers import behaviour, dbt, epitome

    # A type error here: a package lacks a function, or has another signature.
    CLASSIFIERS: tuple[Classifier, ...] = (epitome, dbt, behaviour)


def by_key(key: str) -> Classifier:
    """The package of a key of the section `classifiers`."""
    return cast(Classifier, import_module(f"attune.classifiers.{key}"))
