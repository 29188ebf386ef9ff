"""Custom metrics of single replies; `docs/extend.md` shows how to add one.

An entry of `CUSTOM_METRICS` is enough: stage `evaluate` scores every reply with it and writes the mean to
`metrics/text/<variant>.json`, stage `intervals` writes its interval, and it gets a column in all tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CustomMetric:
    """Heading in tables (with ↑ or ↓ if higher or lower is better), decimals, and the score of (reply, reference)."""

    heading: str
    digits: int
    score: Callable[[str, str], float]


CUSTOM_METRICS: dict[str, CustomMetric] = {}
"""Name to metric. The name is the column's, and no other metric may have it."""


def per_example(replies: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """The (N,) scores of each custom metric, for (N,) replies and their human references."""
    pairs = list(zip(replies, references, strict=True))
    return {name: [metric.score(*pair) for pair in pairs] for name, metric in CUSTOM_METRICS.items()}
