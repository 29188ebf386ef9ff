"""The score interval of a proportion."""

from __future__ import annotations

from math import sqrt

NORMAL = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927), which has a width even if all draws are the same.

    Args:
        share: 0..1, of the draws.
        count: number of independent draws, a fraction for an effective number; 0 gives (0, 1).
    """
    if not count:
        return 0.0, 1.0
    square = NORMAL**2 / count
    centre = (share + square / 2) / (1 + square)
    half = sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)
