"""The four stages of empathy of dialectical behaviour therapy in a reply (Linehan 1997), as probabilities.

A classifier of the reply in its context gives a probability to each stage and to none of them; which acts of a corpus
stand for which stage is a table (`data/dbt_stages.csv`).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.dialogues import Turn
from stages.errors import UserError
from stages.scoring.turn_classifier import encode, load, probabilities

if TYPE_CHECKING:
    from stages.params import Hardware

STAGES: tuple[str, ...] = ("listening", "reflecting", "acknowledging", "genuine")
NONE = "none"
LABELS = (*STAGES, NONE)
"""The classifier's labels, in the order of its probabilities."""
COLUMNS = ("strategy", "stage", "source")


class DbtError(UserError):
    """The table of stages, or the labels of a corpus, cannot be used."""


def stage_probabilities(
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
        ClassifierError: `folder` is not what stage `dbt` writes.
        DbtError: it holds a classifier of other labels.
        ValueError: there are not as many contexts as replies.
    """
    import torch

    torch.set_num_threads(hardware.threads)
    classifier = load(folder, hardware)
    if classifier.labels != LABELS:
        raise DbtError(f"{folder} classifies {', '.join(classifier.labels)}, not {', '.join(LABELS)}")
    return probabilities(classifier, encode(classifier, contexts, replies), hardware)


def read_stages(path: Path) -> dict[str, str]:
    """The table of stages: strategy to one of `LABELS`; an empty stage is none.

    Raises:
        DbtError: it is missing or no csv with the columns, names a stage that there is not, or a strategy twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise DbtError(f"{path} is missing: dbt.stages names the table") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DbtError(f"{path} is no csv: {error}") from None
    if not rows:
        raise DbtError(f"{path} has no rows: expected the columns {', '.join(COLUMNS)}")
    stages: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        strategy, stage = (row.get("strategy") or "").strip(), (row.get("stage") or "").strip() or NONE
        if not strategy or "stage" not in row:
            raise DbtError(f"{path}:{line}: expected the columns {', '.join(COLUMNS)}, with a strategy")
        if strategy in stages:
            raise DbtError(f"{path}:{line}: strategy {strategy!r} has two rows")
        if stage not in LABELS:
            raise DbtError(f"{path}:{line}: stage {stage!r} is none of {', '.join(LABELS)}, and not empty")
        stages[strategy] = stage
    return stages
