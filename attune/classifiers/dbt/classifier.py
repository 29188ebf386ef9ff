"""The four stages of empathy of dialectical behaviour therapy in a reply (Linehan 1997), as probabilities.

A classifier of the reply in its context gives a probability to each stage and to none of them; which acts of a corpus
stand for which stage is a table (`data/dbt_stages.csv`).
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
MAKER = "classifier@dbt"


def probabilities(
    folder: Path, contexts: Sequence[Sequence[Turn]], replies: Sequence[str], hardware: Hardware
) -> list[list[float]]:
    """What stage each of N replies shows.

    Args:
        folder: what stage `dbt` wrote.
        contexts: the turns before each reply; the last is the user's.
        replies: N texts.
        hardware: device and precision.

    Returns:
        N rows of five probabilities: the four of `STAGES` in their order, then none of them.

    Raises:
        ModelError: `folder` is not what stage `dbt` writes, or holds a classifier of other labels.
        ValueError: there are not as many contexts as replies.
    """
    return classify(folder, LABELS, contexts, replies, hardware, MAKER)


def read_stages(path: Path) -> dict[str, str]:
    """The table of stages: strategy to one of `LABELS`; an empty stage is none.

    Raises:
        DataError: as `read_table`.
    """
    return read_table(path, "dbt.table", COLUMNS, LABELS)


def signature(folder: Path) -> dict[str, str]:
    """What explains the metrics, from the folder of the classifier."""
    return describe(folder, "dbt")
