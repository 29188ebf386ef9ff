"""All that the report's pages show, read from the files of `results.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    movement_file,
    of_replies,
    pairs_file,
    read_metrics,
    read_quality,
    read_replies,
    read_rows,
    read_signature,
    read_text,
    read_variants,
    scores_file,
    sft_curve_file,
    unreadable,
)
from attune.report.tables import MOVEMENT_COLUMNS, Metrics
from attune.report.validity import Validity, read_validity

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_SCORES = {EPITOME: ("level_er", "level_ip", "level_ex"), TEXT: ("rouge_l", "bertscore_f1")}
"""Scorer to those of its scores by example that the page of samples shows."""
DPO_CURVES = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "loss")

Curve = list[tuple[int, float]]
"""Optimizer steps and values."""


@dataclass
class DpoCurves:
    """The curves of all rounds of DPO on one axis of optimizer steps."""

    curves: dict[str, Curve] = field(default_factory=lambda: {name: [] for name in DPO_CURVES})
    ends: dict[str, int] = field(default_factory=dict)
    """Last step of each round."""
    moved: dict[str, Curve] = field(default_factory=lambda: {name: [] for name in MOVEMENT_COLUMNS})
    """What the rounds moved on valid pairs: where a chain starts, and at the end of each round."""
    movement: dict[str, tuple[Metrics, Metrics]] = field(default_factory=dict)
    """The same for each round that was measured: where its chain starts, and at its end."""


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
    sft: dict[str, Curve]
    dpo: DpoCurves
    win_rates: dict[tuple[str, str], Metrics]
    validity: Validity = field(default_factory=dict)
    examples: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Variant to its scores by example, all numbers, with the ids as index."""
    conversations: list[dict[str, Any]] = field(default_factory=list)
    """Those of the last variant that is probed: id, label, turns, states; none if no variant is."""


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
        sft={key: read_curve(sft_curve_file(key, "loss")) for key in params.adapters},
        dpo=read_dpo(params.rounds),
        win_rates=win_rates.compared(read_csv(RATINGS), replies, params.context.targets),
        validity=read_validity(),
        examples={key: read_examples(params, key) for key in params.variants},
        conversations=read_conversations(params),
    )


def read_conversations(params: Params) -> list[dict[str, Any]]:
    """The conversations of the last probed variant that has a model.

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


def read_examples(params: Params, variant: str) -> pd.DataFrame:
    """The scores of a variant's replies by all its scorers: a row for each example.

    Raises:
        UserError: as `read_rows`.
    """
    import pandas as pd

    tables = (read_rows(scores_file(scorer, variant)) for scorer in of_replies(params.scorers))
    parts = [pd.DataFrame(rows).set_index("id").select_dtypes("number") for rows in tables]
    return pd.concat(parts, axis="columns")


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
        if movement_file(key, "margin").path.is_file():
            _add_movement(joined, key, settings, offset - start)
        offset += end - start
        joined.ends[key], last_steps[ROUNDS / key] = offset, end
    return joined


def _add_movement(joined: DpoCurves, key: str, settings: Round, shift: int) -> None:
    """Add what a round moved.

    Args:
        joined: the curves of the rounds before it.
        key: of the round.
        settings: of the round.
        shift: from its steps to those of all rounds.
    """
    curves = {name: read_curve(movement_file(key, name)) for name in MOVEMENT_COLUMNS}
    for name, curve in curves.items():
        joined.moved[name] += [(step + shift, value) for step, value in curve]
    # The first round of a chain has the chain's start as its first point.
    first = {name: curve[0][1] for name, curve in curves.items()}
    start, _ = joined.movement.get(Path(settings.init).name, (first, first))
    joined.movement[key] = start, {name: curve[-1][1] for name, curve in curves.items()}


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
