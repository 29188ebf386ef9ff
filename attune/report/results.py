"""The files that the stages write, and how they are read.

No other module of `attune/report` knows where a result is stored. The first functions below return an `Artifact`: a
path and the DVC stage that writes it, which the error messages name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attune.config.schema import PROBES, Params, scoring_stage
from attune.report.tables import Metrics, mmlu_columns, truth_chance
from attune.runtime.errors import UserError

METRICS = Path("metrics")
SCORES = Path("data/scores")
REPLIES = Path("data/replies")
CURVES = Path("reports/curves")
RATINGS = Path("data/ratings.csv")

TEXT, EPITOME, MMLU = "text", "epitome", "mmlu"
"""Scorers that every recipe has; each scorer has a folder in `metrics/` and `data/scores/`."""
JUDGE, JUDGE_SAFETY = "judge", "judge_safety"
"""The stages of the automatic judge; the second reads the replies to probes of safety."""
REPLY_COLUMNS = ["id", "label", "context", "reference", "reply"]


@dataclass(frozen=True)
class Artifact:
    """A file and the DVC stage that writes it."""

    path: Path
    stage: str


def metrics_file(scorer: str, variant: str) -> Artifact:
    """The means of a scorer over the test examples."""
    return Artifact(METRICS / scorer / f"{variant}.json", scoring_stage(scorer, variant))


def signature_file(scorer: str, variant: str) -> Artifact:
    """The versions and settings behind a scorer's metrics."""
    return Artifact(METRICS / scorer / f"{variant}.signature.json", scoring_stage(scorer, variant))


def intervals_file(scorer: str, variant: str) -> Artifact:
    """The bootstrap intervals of a scorer's metrics."""
    return Artifact(METRICS / "intervals" / scorer / f"{variant}.json", f"intervals@{variant}-{scorer}")


def scores_file(scorer: str, variant: str) -> Artifact:
    """The scores of a scorer by example."""
    return Artifact(SCORES / scorer / f"{variant}.parquet", scoring_stage(scorer, variant))


def mmlu_file(variant: str) -> Artifact:
    """The metrics of MMLU."""
    return metrics_file(MMLU, variant)


def quality_file(classifier: str) -> Artifact:
    """How good a classifier is on held-out examples."""
    return Artifact(METRICS / "classifiers" / f"{classifier}.json", f"classifier@{classifier}")


def data_file() -> Artifact:
    """Counts of the corpus."""
    return Artifact(METRICS / "data.json", "prepare")


def labels_file() -> Artifact:
    """Train dialogues of each label: not a metric, since nothing is decided from them."""
    return Artifact(METRICS / "labels.json", "prepare")


def pairs_file(key: str) -> Artifact:
    """Statistics of the preference pairs of a round of DPO."""
    return Artifact(METRICS / "pairs" / f"{key}.json", f"pairs@{key}")


def replies_file(variant: str) -> Artifact:
    """The replies of a variant to the test examples."""
    return Artifact(REPLIES / f"{variant}.parquet", f"generate@{variant}")


def dpo_curve_file(key: str, name: str) -> Artifact:
    """A curve of a round of DPO, as DVCLive writes it."""
    return Artifact(CURVES / "dpo" / key / "plots" / "metrics" / f"{name}.tsv", f"dpo@{key}")


def sft_curve_file(key: str, name: str) -> Artifact:
    """A curve of an adapter's supervised fine-tuning, as DVCLive writes it."""
    return Artifact(CURVES / key / "plots" / "metrics" / f"{name}.tsv", f"sft@{key}")


def movement_file(key: str, name: str) -> Artifact:
    """What a round of DPO moved on valid pairs; the rounds of an architecture that is not packed have none."""
    return dpo_curve_file(key, f"valid/{name}")


def read_variants(params: Params) -> tuple[dict[str, Metrics], dict[str, Metrics]]:
    """The metrics and the intervals of every variant, each by variant; see `read_variant`.

    Raises:
        UserError: as `read_metrics`.
    """
    variants = {key: read_variant(params, key) for key in params.variants}
    return {key: metrics for key, (metrics, _) in variants.items()}, {key: ends for key, (_, ends) in variants.items()}


def read_variant(params: Params, variant: str) -> tuple[Metrics, Metrics]:
    """The metrics of a variant by all its scorers that the tables show, and the ends of their intervals.

    Raises:
        UserError: as `read_metrics`.
    """
    metrics, intervals = mmlu_columns(read_metrics(mmlu_file(variant)), read_metrics(intervals_file(MMLU, variant)))
    for scorer in of_replies(params.scorers):
        metrics |= read_metrics(metrics_file(scorer, variant))
        intervals |= read_metrics(intervals_file(scorer, variant))
    probed, bounds = read_probes(params, variant)
    return metrics | probed, intervals | bounds | truth_chance(probed)


def read_probes(params: Params, variant: str) -> tuple[Metrics, Metrics]:
    """The metrics of probes and judge of a variant, and the ends of their intervals, where it is probed or judged.

    Raises:
        UserError: as `read_metrics`.
    """
    metrics: Metrics = {}
    intervals: Metrics = {}
    for probe in PROBES if variant in params.probed else ():
        metrics |= read_metrics(metrics_file(probe, variant))
        stage = f"probe_intervals@{variant}-{probe}"
        intervals |= read_metrics(Artifact(METRICS / "intervals" / probe / f"{variant}.json", stage))
    judges = (JUDGE, JUDGE_SAFETY) if variant in params.probed else (JUDGE,)
    for judge in judges if variant in params.judged else ():
        metrics |= read_metrics(Artifact(METRICS / judge / f"{variant}.json", f"{judge}@{variant}"))
        intervals |= read_metrics(Artifact(METRICS / "intervals" / judge / f"{variant}.json", f"{judge}@{variant}"))
    return metrics, intervals


def of_replies(scorers: Sequence[str]) -> list[str]:
    """The scorers that read replies: all but MMLU, which asks the model."""
    return [scorer for scorer in scorers if scorer != MMLU]


def read_quality(params: Params) -> Metrics:
    """How good the classifiers behind the metrics are; the names begin with what is classified (`er_`, `dbt_`, ...).

    Raises:
        UserError: as `read_metrics`.
    """
    quality: Metrics = {}
    for classifier in params.classifiers:
        # Only `dbt` writes its measures without a prefix.
        prefix = "dbt_" if classifier == "dbt" else ""
        values = read_metrics(quality_file(classifier))
        quality |= {f"{prefix}{name}": value for name, value in values.items()}
    return quality


def read_signature(params: Params, variant: str) -> dict[str, Any]:
    """The signatures of all scorers of a variant's replies as one object.

    Raises:
        UserError: as `read_object`.
    """
    signatures = [read_object(signature_file(scorer, variant)) for scorer in of_replies(params.scorers)]
    return {key: value for signature in signatures for key, value in signature.items()}


def read_replies(variant: str) -> list[dict[str, Any]]:
    """The replies of a variant: rows with `REPLY_COLUMNS`.

    Raises:
        UserError: as `read_rows`.
    """
    return read_rows(replies_file(variant), REPLY_COLUMNS)


def read_rows(artifact: Artifact, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read columns (None: all) of a parquet file as one dict per row.

    Raises:
        UserError: the file is missing, is no parquet, lacks a column or has no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(artifact.path, columns=list(columns) if columns else None)
    except FileNotFoundError:
        raise missing(artifact) from None
    except pa.ArrowInvalid as error:
        raise unreadable(artifact, str(error)) from None
    if not len(table):
        raise unreadable(artifact, "there are no rows")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def read_metrics(artifact: Artifact) -> Metrics:
    """Read a flat JSON file of numbers.

    Raises:
        UserError: it is missing or is no such file.
    """
    values = read_object(artifact)
    if not all(isinstance(value, int | float) for value in values.values()):
        raise unreadable(artifact, "expected an object of numbers")
    return values


def read_object(artifact: Artifact) -> dict[str, Any]:
    """Read a file of one JSON object.

    Raises:
        UserError: it is missing or is no such file.
    """
    try:
        values = json.loads(read_text(artifact))
    except json.JSONDecodeError as error:
        raise unreadable(artifact, str(error)) from None
    if not isinstance(values, dict):
        raise unreadable(artifact, "expected an object")
    return values


def read_text(artifact: Artifact) -> str:
    """Read a text file.

    Raises:
        UserError: it is missing.
    """
    try:
        return artifact.path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise missing(artifact) from None


def missing(artifact: Artifact) -> UserError:
    """The error for a file that does not exist."""
    return UserError(f"{artifact.path} is missing: run `dvc repro {artifact.stage}`")


def unreadable(artifact: Artifact, why: str) -> UserError:
    """The error for a file that its stage must write again."""
    return UserError(f"{artifact.path} cannot be read ({why}): run `dvc repro --force --single-item {artifact.stage}`")
