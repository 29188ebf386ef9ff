"""Win rates of variants and the agreement of raters, from the answers to `attune rate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from attune.data.dialogue import Targets, dialogue_of
from attune.report.ratings import CHOICES, Answer, current, flipped, items
from attune.report.tables import Metrics, table
from attune.runtime.errors import DataError
from attune.scoring.intervals.wilson import wilson

COLUMNS = {
    "answers": ("answers", 0),
    "dialogues": ("dialogues", 0),
    "raters": ("raters", 0),
    "wins_a": ("A wins", 0),
    "ties": ("ties", 0),
    "wins_b": ("B wins", 0),
    "win_rate": ("win rate of B %", 1),
    "agreement": ("alpha", 2),
    "several": ("n of alpha", 0),
}


def summary(answers: Sequence[Answer], targets: Targets) -> Metrics:
    """The win rate of b over a, and how far raters agree, from answers that compare the same two variants.

    Args:
        answers: of `ratings.current`.
        targets: the setting `targets`, which tells how the id of an example contains that of its dialogue.

    Returns:
        `answers`, `dialogues`, `raters`, `wins_a`, `ties`, `wins_b`, `several` (examples that several raters answered):
        counts; `win_rate`: percentage of answers for b, a tie counting half, with its 95 % interval `win_rate.low` and
        `win_rate.high` of `wilson`; and `agreement`, if `alpha` is defined.

    Raises:
        DataError: there are no answers.
    """
    if not answers:
        raise DataError("no answers yet: collect them with `python -m attune rate`")
    counts = Counter(answer.choice for answer in answers)
    sizes = Counter(dialogue_of(answer.example, targets) for answer in answers)
    share = (counts["b"] + counts["tie"] / 2) / len(answers)
    # Answers to one dialogue are dependent: Kish's effective sample size (1965, section 8.2, for clusters of equal
    # answers), which is the number of dialogues if all have as many answers. A tie, which counts half, varies less than
    # a win or a loss. Both choices err towards the wider interval.
    low, high = wilson(share, len(answers) ** 2 / sum(size**2 for size in sizes.values()))
    result: Metrics = {
        "answers": len(answers),
        "dialogues": len(sizes),
        "raters": len({answer.rater for answer in answers}),
        "wins_a": counts["a"],
        "ties": counts["tie"],
        "wins_b": counts["b"],
        "win_rate": 100 * share,
        "win_rate.low": 100 * low,
        "win_rate.high": 100 * high,
    }
    result["several"] = sum(count > 1 for count in Counter(answer.example for answer in answers).values())
    agreement = alpha(answers)
    return result if agreement is None else result | {"agreement": agreement}


def alpha(answers: Sequence[Answer]) -> float | None:
    """Krippendorff's alpha for nominal data (2004, chapter 11): 1 is perfect agreement, 0 chance.

    Returns:
        None if no two raters have answered the same example, or all answers to such examples are the same.
    """
    import krippendorff
    import numpy as np

    raters, examples = (sorted({getattr(answer, name) for answer in answers}) for name in ("rater", "example"))
    values = np.full((len(raters), len(examples)), np.nan)
    for answer in answers:
        values[raters.index(answer.rater), examples.index(answer.example)] = CHOICES.index(answer.choice)
    shared = values[:, (~np.isnan(values)).sum(0) > 1]
    if len(np.unique(shared[~np.isnan(shared)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=shared, level_of_measurement="nominal"))


def compared(
    answers: Sequence[Answer], replies: Mapping[str, Sequence[Mapping[str, Any]]], targets: Targets
) -> dict[tuple[str, str], Metrics]:
    """The `summary` of each pair of variants that people have compared, in either order.

    Args:
        answers: for any variants, old or new.
        replies: variant to the rows of its replies; answers to other replies do not count.
        targets: as in `summary`.
    """
    summaries = {}
    for a, b in combinations(replies, 2):
        pair_answers = current(answers, items(replies[a], replies[b]), (a, b))
        pair_answers += map(flipped, current(answers, items(replies[b], replies[a]), (b, a)))
        if pair_answers:
            summaries[a, b] = summary(pair_answers, targets)
    return summaries


def section(summaries: Mapping[tuple[str, str], Metrics]) -> str:
    """The section of the report on the preferences of people; empty if there are no answers.

    Args:
        summaries: of `compared`.
    """
    if not summaries:
        return ""
    rows = {f"{a}, {b}": values for (a, b), values in summaries.items()}
    notes = {
        name: {"win_rate": f" ({values['win_rate.low']:.1f} to {values['win_rate.high']:.1f})"}
        for name, values in rows.items()
    }
    return f"""
## What people prefer

{table("A, B", rows, COLUMNS, notes)}

Blind comparisons of these replies (`python -m attune rate`); answers to earlier replies do not count. Win rate: a tie
counts half; in brackets the 95 % Wilson interval, with the effective number of dialogues in place of the number of
answers, since answers to the same dialogue are dependent. alpha: Krippendorff's alpha, the agreement of raters on
the n examples that several of them answered; 1 is perfect, 0 chance.
"""
