"""P-values of resampled differences, and their correction for the number of metrics looked at."""

from __future__ import annotations

from collections.abc import Sequence

from attune.scoring.intervals.bootstrap import Numbers


def p_value(differences: Numbers) -> float:
    """Two-sided p-value of (R,) resampled differences: it inverts the percentile interval.

    Twice the smaller share on one side of 0 (Efron and Tibshirani 1993, section 15.4), each count one larger, so that
    it is never 0.
    """
    smaller = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(differences) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order (Holm 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = largest
    return corrected
