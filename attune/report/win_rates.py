"""How often people find one variant's replies the better ones, and how far they agree: of answers to `attune rate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import Any

from attune.data.dialogue import Targets, dialogue_of
from attune.report.ratings import CHOICES, Answer, current, flipped, items
from attune.report.tables import Metrics, table
from attune.runtime.errors import DataError

NORMAL = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""
COLUMNS = {
    "answers": ("answers", 0),
    "dialogues": ("dialogues", 0),
    "raters": ("raters", 0),
    "wins_a": ("A wins", 0),
    "ties": ("ties", 0),
    "wins_b": ("B wins", 0),
    "win_rate": ("win rate of B %", 1),
    "agreement": ("alpha", 2),
}


def summary(answers: Sequence[Answer], targets: Targets) -> Metrics:
    """How often b wins, and how far raters agree, of answers that compare the same two variants.

    Args:
        answers: of `ratings.current`.
        targets: `context.targets`, which says what the dialogue of an example is.

    Returns:
        `answers`, `dialogues`, `raters`, `wins_a`, `ties`, `wins_b`: counts; `win_rate`, the share x 100 of answers for
        b, a tie counting half, with its 95 % interval `win_rate.low` and `win_rate.high` of `wilson`; and `agreement`,
        where `alpha` is defined.

    Raises:
        DataError: there are none.
    """
    if not answers:
        raise DataError("no answers yet: `python -m attune rate` asks for them")
    counts = Counter(one.choice for one in answers)
    sizes = Counter(dialogue_of(one.example, targets) for one in answers)
    share = (counts["b"] + counts["tie"] / 2) / len(answers)
    low, high = wilson(share, len(answers) ** 2 / sum(size**2 for size in sizes.values()))
    found: Metrics = {
        "answers": len(answers),
        "dialogues": len(sizes),
        "raters": len({one.rater for one in answers}),
        "wins_a": counts["a"],
        "ties": counts["tie"],
        "wins_b": counts["b"],
        "win_rate": 100 * share,
        "win_rate.low": 100 * low,
        "win_rate.high": 100 * high,
    }
    agreement = alpha(answers)
    return found if agreement is None else found | {"agreement": agreement}


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which has a width where all answers are the same, too.

    Args:
        share: 0..1.
        count: of independent draws. Answers to one dialogue are none, so it is Kish's effective number (1965, section
            8.2 for answers of a dialogue that are all alike): (sum of n)^2 / sum of n^2 over the n answers of each
            dialogue, which is the number of dialogues where each has as many. A tie, which counts half, varies less
            than a win or a loss; both choices err towards the wider interval.
    """
    square = NORMAL**2 / count
    centre = (share + square / 2) / (1 + square)
    half = sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def alpha(answers: Sequence[Answer]) -> float | None:
    """Krippendorff's alpha of nominal data (2004, chapter 11): 1 is perfect agreement, 0 chance.

    Returns:
        None where no two raters have answered the same example, or all answers to such examples are the same.
    """
    import krippendorff
    import numpy as np

    raters, examples = (sorted({getattr(one, name) for one in answers}) for name in ("rater", "example"))
    values = np.full((len(raters), len(examples)), np.nan)
    for one in answers:
        values[raters.index(one.rater), examples.index(one.example)] = CHOICES.index(one.choice)
    compared = values[:, (~np.isnan(values)).sum(0) > 1]
    if len(np.unique(compared[~np.isnan(compared)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=compared, level_of_measurement="nominal"))


def compared(
    answers: Sequence[Answer], replies: Mapping[str, Sequence[Mapping[str, Any]]], targets: Targets
) -> dict[tuple[str, str], Metrics]:
    """The summary of each pair of variants that people have compared, whichever of the two was named first.

    Args:
        answers: of any variants and of any time.
        replies: variant to its rows of `data/replies/<variant>.parquet`; answers to other replies do not count.
        targets: as in `summary`.
    """
    found = {}
    for a, b in combinations(replies, 2):
        own = current(answers, items(replies[a], replies[b]), (a, b))
        own += map(flipped, current(answers, items(replies[b], replies[a]), (b, a)))
        if own:
            found[a, b] = summary(own, targets)
    return found


def section(found: Mapping[tuple[str, str], Metrics]) -> str:
    """The report's section on what people prefer, empty where nobody was asked."""
    if not found:
        return ""
    rows = {f"{a}, {b}": values for (a, b), values in found.items()}
    notes = {
        name: {"win_rate": f" ({values['win_rate.low']:.1f} to {values['win_rate.high']:.1f})"}
        for name, values in rows.items()
    }
    return f"""
## What people prefer

{table("A, B", rows, COLUMNS, notes)}

Blind comparisons (`python -m attune rate`) of these replies; answers to earlier ones do not count. Win rate: a tie
counts half; in brackets its 95 % interval (Wilson's, with the number of dialogues, not of answers, since answers to one
dialogue are not independent). alpha: Krippendorff's, how far raters agree on what several answered; 1 is perfect, 0
chance.
"""
