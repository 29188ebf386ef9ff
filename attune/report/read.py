"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attune.config.schema import Params, Round
from attune.report import samples_page, win_rates
from attune.report.figures import Curve, Rounds
from attune.report.ratings import read_csv
from attune.report.results import (
    METRICS,
    missing,
    read_metrics,
    read_object,
    read_text,
    read_variants,
    scoring_stage,
    unreadable,
)
from attune.report.tables import (
    Metrics,
)

REPLIES = Path("data/replies")
SCORES = Path("data/scores")
CURVES = Path("reports/curves")
DPO = Path("models/dpo")
RATINGS = Path("data/ratings.csv")
FIELDS = ["id", "label", "context", "reference", "reply"]
DPO_CURVES = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


@dataclass(frozen=True)
class Results:
    """All that the pages are made of; variants and rounds in the order of the parameters."""

    data: Metrics
    variants: dict[str, Metrics]
    intervals: dict[str, Metrics]
    classifiers: Metrics
    signature: dict[str, str]
    pairs: dict[str, Metrics]
    replies: dict[str, list[dict[str, Any]]]
    scores: dict[str, dict[str, Metrics]]
    losses: dict[str, Curve]
    rounds: Rounds
    preferred: dict[tuple[str, str], Metrics]


def read(params: Params) -> Results:
    """Read what the stages wrote.

    Raises:
        UserError: a file is missing or does not fit; names the file and the stage that makes it.
        DataError: the answers of people cannot be read.
    """
    first = next(iter(params.variants))
    losses: dict[str, Curve] = {name: read_curve(CURVES / name, "loss", f"sft@{name}") for name in params.adapters}
    if params.model.is_made:
        # A model of the hub comes trained, without a curve.
        losses = {"base": read_curve(CURVES / "base", "loss", "base"), **losses}
    variants, intervals = read_variants(params)
    replies = {key: read_replies(REPLIES / f"{key}.parquet", f"generate@{key}") for key in params.variants}
    return Results(
        data=read_metrics(METRICS / "data.json", "prepare"),
        variants=variants,
        intervals=intervals,
        classifiers=read_classifiers(params),
        signature=read_object(METRICS / "text" / f"{first}.signature.json", f"evaluate@{first}"),
        pairs={key: read_metrics(METRICS / "pairs" / f"{key}.json", f"pairs@{key}") for key in params.rounds},
        replies=replies,
        scores={key: read_scores(key) for key in params.variants},
        losses=losses,
        rounds=read_rounds(params.rounds),
        preferred=win_rates.compared(read_csv(RATINGS), replies, params.context.targets),
    )


def read_classifiers(params: Params) -> Metrics:
    """How good the classifiers of empathy, and of a counsellor's behaviours where a recipe has them, are.

    Raises:
        UserError: as `read_metrics`.
    """
    names = [name for name in params.classifiers if name != "dbt"]
    measures = [read_metrics(METRICS / "classifiers" / f"{name}.json", f"classifier@{name}") for name in names]
    return {key: value for metrics in measures for key, value in metrics.items()}


def read_replies(path: Path, stage: str) -> list[dict[str, Any]]:
    """Read the texts of a variant's replies.

    Raises:
        UserError: the file is missing, is no parquet, lacks a column or has no rows.
    """
    return _rows(path, FIELDS, stage)


def _rows(path: Path, columns: list[str], stage: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    except FileNotFoundError:
        raise missing(path, stage) from None
    except pa.ArrowInvalid as error:
        raise unreadable(path, stage, str(error)) from None
    if not rows:
        raise unreadable(path, stage, "there are no rows")
    return rows


def read_scores(variant: str) -> dict[str, Metrics]:
    """Read the scores of a variant's replies that the page of samples shows, by example.

    Raises:
        UserError: a file is missing or is no parquet with these columns.
    """
    scores: dict[str, Metrics] = {}
    for scorer, columns in samples_page.SCORE_COLUMNS.items():
        path = SCORES / scorer / f"{variant}.parquet"
        for row in _rows(path, ["id", *columns], scoring_stage(variant, scorer)):
            scores.setdefault(row.pop("id"), {}).update(row)
    return scores


def read_curve(folder: Path, name: str, stage: str) -> list[tuple[int, float]]:
    """Read a DVCLive curve, `<folder>/plots/metrics/<name>.tsv`: one row a logged step; of a repeated step the last.

    Raises:
        UserError: the file is missing, empty, or a row is no step with a number.
    """
    path = folder / "plots" / "metrics" / f"{name}.tsv"
    points: dict[int, float] = {}
    for line, row in enumerate(read_text(path, stage).splitlines()[1:], start=2):
        try:
            step, value = row.split("\t")
            points[int(step)] = float(value)
        except ValueError:
            raise unreadable(path, stage, f"line {line}: expected a step and a number, found {row!r}") from None
    if not points:
        raise unreadable(path, stage, "there are no steps")
    return sorted(points.items())


def read_rounds(rounds: Mapping[str, Round]) -> Rounds:
    """Read the curves of all rounds of DPO and put them on one step axis.

    A round's curves begin with those of the round that it started from; that part is drawn once. A round that starts
    anew counts its steps from 1 and is put behind the one before it.
    """
    joined = Rounds(curves={name: [] for name in DPO_CURVES})
    last: dict[Path, int] = {}
    position = 0
    for key, one in rounds.items():
        own = {name: read_curve(CURVES / "dpo" / key, name, f"dpo@{key}") for name in DPO_CURVES}
        start, end = last.get(Path(one.init), 0), max(curve[-1][0] for curve in own.values())
        for name, curve in own.items():
            joined.curves[name] += [(step - start + position, value) for step, value in curve if step > start]
        position += end - start
        joined.ends[key], last[DPO / key] = position, end
    return joined
