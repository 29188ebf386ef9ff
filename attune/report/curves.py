"""The curves of a run as two tables, for `dvc plots`: one file each whatever adapters and rounds the recipe has."""

from __future__ import annotations

from collections.abc import Mapping

from attune.report.read import DPO_CURVES, Curve, DpoCurves
from attune.runtime.io import csv_text


def sft_csv(curves: Mapping[str, Curve]) -> str:
    """The loss of every adapter in nats a token: adapter, step, loss.

    The steps of an adapter go on behind those of the one before it, as DVC draws a file as one line.

    Args:
        curves: adapter to its loss.
    """
    rows: list[tuple[str, int, float]] = []
    offset = 0
    for adapter, curve in curves.items():
        rows += [(adapter, step + offset, loss) for step, loss in curve]
        offset = rows[-1][1]
    return csv_text(("adapter", "step", "loss"), rows)


def dpo_csv(dpo: DpoCurves) -> str:
    """All rounds: step, the implicit rewards of both sides (beta * nats), the share of pairs in order, the loss."""
    first, *others = (dpo.curves[name] for name in DPO_CURVES)
    columns = [dict(curve) for curve in others]
    rows = [(step, value, *(column[step] for column in columns)) for step, value in first]
    return csv_text(("step", "chosen", "rejected", "accuracy", "loss"), rows)
