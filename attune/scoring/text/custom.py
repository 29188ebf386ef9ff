"""Metrics of one's own, of single replies: `docs/extend.md` adds one.

An entry of `OWN` is all there is to a metric: stage `evaluate` scores every reply with it, its mean is in
`metrics/<variant>.json`, its interval in `metrics/intervals/`, and its column in all tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Own:
    """Heading in tables (with ↑ or ↓ where higher or lower is better), decimals, and score of (reply, reference)."""

    heading: str
    digits: int
    score: Callable[[str, str], float]


OWN: dict[str, Own] = {}
"""Name to metric; a name is that of a column, and no other metric's."""


def per_example(replies: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Each metric of `OWN` of (N,) replies and their human references: name to (N,) scores."""
    pairs = list(zip(replies, references, strict=True))
    return {name: [one.score(*pair) for pair in pairs] for name, one in OWN.items()}
