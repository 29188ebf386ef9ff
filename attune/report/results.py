"""What the stages wrote, read for the pages that show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attune.config.schema import Params
from attune.report.tables import Metrics, mmlu_columns
from attune.runtime.errors import UserError

METRICS = Path("metrics")


def read_variants(params: Params) -> tuple[dict[str, Metrics], dict[str, Metrics]]:
    """`read_variant` of every variant: their metrics, and their intervals.

    Raises:
        UserError: as `read_metrics`.
    """
    read = {key: read_variant(params, key) for key in params.variants}
    return {key: metrics for key, (metrics, _) in read.items()}, {key: bounds for key, (_, bounds) in read.items()}


def read_variant(params: Params, key: str) -> tuple[Metrics, Metrics]:
    """The metrics of a variant, with MMLU and what classifiers of labels see among them; and their intervals.

    Raises:
        UserError: as `read_metrics`.
    """
    metrics, intervals = mmlu_columns(read_metrics(METRICS / "mmlu" / f"{key}.json", f"mmlu@{key}"))
    for scorer in params.scorers:
        path = Path(scorer) / f"{key}.json"
        metrics |= read_metrics(METRICS / path, scoring_stage(key, scorer))
        intervals |= read_metrics(METRICS / "intervals" / path, f"intervals@{key}-{scorer}")
    return metrics, intervals


def scoring_stage(variant: str, scorer: str) -> str:
    """The stage that writes the scores and metrics of a variant by a scorer."""
    return f"evaluate@{variant}" if scorer == "text" else f"scores@{variant}-{scorer}"


def read_metrics(path: Path, stage: str) -> Metrics:
    """Read a flat JSON file of numbers.

    Raises:
        UserError: it is missing or is no such file.
    """
    values = read_object(path, stage)
    if not all(isinstance(value, int | float) for value in values.values()):
        raise unreadable(path, stage, "expected an object of numbers")
    return values


def read_text(path: Path, stage: str) -> str:
    """Read a file that `stage` writes.

    Raises:
        UserError: it is missing.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise missing(path, stage) from None


def read_object(path: Path, stage: str) -> dict[str, Any]:
    """Read a file of one JSON object.

    Raises:
        UserError: it is missing or is no such file.
    """
    try:
        values = json.loads(read_text(path, stage))
    except json.JSONDecodeError as error:
        raise unreadable(path, stage, str(error)) from None
    if not isinstance(values, dict):
        raise unreadable(path, stage, "expected an object")
    return values


def missing(path: Path, stage: str) -> UserError:
    """The error for a file that is not there."""
    return UserError(f"{path} is missing: run `dvc repro {stage}`")


def unreadable(path: Path, stage: str, why: str) -> UserError:
    """The error for a file that `stage` must write again."""
    return UserError(f"{path} cannot be read ({why}): run `dvc repro --force --single-item {stage}`")
