"""The four stages of empathy of dialectical behaviour therapy (Linehan 1997) in a reply, as probabilities.

A classifier of the reply in its context predicts one of the stages or none. A table (`data/dbt_stages.csv`) maps the
acts of a corpus to stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.classifiers.common.turn_classifier import classify, describe
from attune.data.dialogue import Turn
from attune.labels.turn_labels import read_table

if TYPE_CHECKING:
    from attune.config.schema import Hardware

STAGES: tuple[str, ...] = ("listening", "reflecting", "acknowledging", "genuine")
NONE = "none"
LABELS = (*STAGES, NONE)
"""The classifier's labels, in the order of its probabilities."""
COLUMNS = ("strategy", "stage")
STAGE = "classifier@dbt"


def probabilities(
    folder: Path, contexts: Sequence[Sequence[Turn]], replies: Sequence[str], hardware: Hardware
) -> list[list[float]]:
    """Probabilities of the stages in each of N replies.

    Args:
        folder: the trained classifier.
        contexts: the turns before each reply; the last is the user's.
        replies: N texts.
        hardware: device and precision.

    Returns:
        N rows of five probabilities, in the order of `LABELS`.

    Raises:
        ModelError: `folder` holds no classifier, or one of other labels.
        ValueError: the numbers of contexts and replies differ.
    """
    return classify(folder, LABELS, contexts, replies, hardware, STAGE)


def read_stages(path: Path) -> dict[str, str]:
    """The table of stages: strategy to one of `LABELS`; an empty stage means `NONE`.

    Raises:
        DataError: as `read_table`.
    """
    return read_table(path, "dbt.table", COLUMNS, LABELS)


def signature(folder: Path) -> dict[str, str]:
    """The origin of the classifier in `folder`."""
    return describe(folder, "dbt")
