"""All that the report's pages show, read from the files of `results.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attune.config.schema import ROUNDS, Params, Round
from attune.report import win_rates
from attune.report.ratings import read_csv
from attune.report.results import (
    EPITOME,
    RATINGS,
    SCORES,
    TEXT,
    Artifact,
    data_file,
    dpo_curve_file,
    pairs_file,
    read_metrics,
    read_quality,
    read_replies,
    read_rows,
    read_signature,
    read_text,
    read_variants,
    scores_file,
    unreadable,
)
from attune.report.tables import Metrics

SAMPLE_SCORES = {EPITOME: ("level_er", "level_ip", "level_ex"), TEXT: ("rouge_l", "bertscore_f1")}
"""Scorer to those of its scores by example that the page of samples shows."""
DPO_CURVES = ("rewards/chosen", "rewards/rejected", "rewards/accuracies")

Curve = list[tuple[int, float]]
"""Optimizer steps and values."""


@dataclass
class DpoCurves:
    """The curves of all rounds of DPO on one axis of optimizer steps."""

    curves: dict[str, Curve] = field(default_factory=lambda: {name: [] for name in DPO_CURVES})
    ends: dict[str, int] = field(default_factory=dict)
    """Last step of each round."""


@dataclass(frozen=True)
class Results:
    """All that the pages show; variants and rounds in the order of the params."""

    data: Metrics
    variants: dict[str, Metrics]
    intervals: dict[str, Metrics]
    quality: Metrics
    signature: dict[str, str]
    pairs: dict[str, Metrics]
    replies: dict[str, list[dict[str, Any]]]
    scores: dict[str, dict[str, Metrics]]
    dpo: DpoCurves
    win_rates: dict[tuple[str, str], Metrics]
    conversations: list[dict[str, Any]] = field(default_factory=list)
    """Scripted ones of the last variant that is probed: id, label, turns, states; none if no variant is."""


def read(params: Params) -> Results:
    """Read what the stages wrote.

    Raises:
        UserError: a file is missing or is invalid; names the file and the stage that writes it.
        DataError: the ratings by people are invalid.
    """
    variants, intervals = read_variants(params)
    replies = {key: read_replies(key) for key in params.variants}
    return Results(
        data=read_metrics(data_file()),
        variants=variants,
        intervals=intervals,
        quality=read_quality(params),
        signature=read_signature(params, next(iter(params.variants))),
        pairs={key: read_metrics(pairs_file(key)) for key in params.rounds},
        replies=replies,
        scores={key: read_scores(key) for key in params.variants},
        dpo=read_dpo(params.rounds),
        win_rates=win_rates.compared(read_csv(RATINGS), replies, params.context.targets),
        conversations=read_conversations(params),
    )


def read_conversations(params: Params) -> list[dict[str, Any]]:
    """The scripted conversations of the last probed variant that has a model.

    Raises:
        UserError: as `read_rows`.
    """
    talking = [name for name, variant in params.probed.items() if variant.replies_file is None]
    if not talking:
        return []
    file = Artifact(SCORES / "converse" / f"{talking[-1]}.parquet", f"converse@{talking[-1]}")
    return read_rows(file, ["id", "label", "turns", "states"])


def read_scores(variant: str) -> dict[str, Metrics]:
    """The scores of `SAMPLE_SCORES` of a variant's replies, by example.

    Raises:
        UserError: as `read_rows`.
    """
    scores: dict[str, Metrics] = {}
    for scorer, columns in SAMPLE_SCORES.items():
        for row in read_rows(scores_file(scorer, variant), ["id", *columns]):
            scores.setdefault(row.pop("id"), {}).update(row)
    return scores


def read_dpo(rounds: Mapping[str, Round]) -> DpoCurves:
    """Read the curves of all rounds of DPO onto one axis of steps.

    The curves of a round begin with the history of the round that it continues; that part is kept once. A round that
    continues no other counts its steps from 1 and is shifted behind the round before it.

    Raises:
        UserError: as `read_curve`.
    """
    joined = DpoCurves()
    last_steps: dict[Path, int] = {}
    offset = 0
    for key, settings in rounds.items():
        curves = {name: read_curve(dpo_curve_file(key, name)) for name in DPO_CURVES}
        start, end = last_steps.get(Path(settings.init), 0), max(curve[-1][0] for curve in curves.values())
        for name, curve in curves.items():
            joined.curves[name] += [(step - start + offset, value) for step, value in curve if step > start]
        offset += end - start
        joined.ends[key], last_steps[ROUNDS / key] = offset, end
    return joined


def read_curve(artifact: Artifact) -> Curve:
    """Read a curve of DVCLive: a tsv file with a header and a row per logged step; the last row of a step counts.

    Raises:
        UserError: the file is missing or has no steps, or a row is not a step and a number.
    """
    points: dict[int, float] = {}
    for line, row in enumerate(read_text(artifact).splitlines()[1:], start=2):
        try:
            step, value = row.split("\t")
            points[int(step)] = float(value)
        except ValueError:
            raise unreadable(artifact, f"line {line}: expected a step and a number, found {row!r}") from None
    if not points:
        raise unreadable(artifact, "there are no steps")
    return sorted(points.items())
