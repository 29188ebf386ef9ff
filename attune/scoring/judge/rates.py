"""Win rates of a variant from the verdicts of a judge, with length control and intervals over contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attune.scoring.intervals.bootstrap import Columns, Numbers, intervals
from attune.scoring.judge.people import kappa
from attune.scoring.judge.verdicts import Duel, Verdict

if TYPE_CHECKING:
    import pandas as pd

OPPONENTS = {"reference": "", "human": "_human"}
"""Whom the variant is compared with, to the end of the names of the metrics."""
WIN = "judge_win_rate"
PRIOR = 1.0
"""Precision of the normal prior of both coefficients, which keeps them finite where all verdicts agree."""
STEPS = 25


def words(text: str) -> int:
    """The length of a reply in words."""
    return len(text.split())


def rows(duels: Sequence[Duel], given: Sequence[Verdict], opponent: str) -> pd.DataFrame:
    """A row for each duel.

    Returns:
        `id`, `opponent`, `win` (100, 50, 0; NaN where unreadable), `longer` (words of the variant's reply less the
        other's), `ours_first` and `theirs_first` (the points of the variant in each order), and the two reasons.
    """
    import pandas as pd

    def number(value: float | None, scale: float = 1.0) -> float:
        return float("nan") if value is None else scale * value

    columns = ["id", "opponent", "win", "longer", "ours_first", "theirs_first", "reason_1", "reason_2"]
    return pd.DataFrame(
        [
            (
                one.id, opponent, number(verdict.points, 100), float(words(one.ours) - words(one.theirs)),
                number(verdict.ours_first), number(verdict.theirs_first), *verdict.reasons,
            )
            for one, verdict in zip(duels, given, strict=True)
        ],
        columns=columns,
    )  # fmt: skip


def metrics(given: Sequence[Verdict]) -> dict[str, float]:
    """How the judge judged: shares in 0..100, and its agreement with itself.

    Returns:
        `judge_unreadable`: duels with an answer that is no verdict. `judge_first`: among the verdicts for one of the
        two, those for the reply that was shown first; 50 is no bias. `judge_flips`: readable duels whose verdict
        changes with the order. `judge_self_kappa`: Cohen's kappa of the two orders. What is not defined is left out.
    """
    readable = [one for one in given if one.points is not None]
    for_first = [one.ours_first for one in given] + [
        None if one.theirs_first is None else 1 - one.theirs_first for one in given
    ]
    decided = [points for points in for_first if points in (0.0, 1.0)]
    values = {
        "judge_unreadable": 100 * (1 - len(readable) / len(given)) if given else None,
        "judge_first": 100 * float(np.mean(decided)) if decided else None,
        "judge_flips": 100 * float(np.mean([one.flipped for one in readable])) if readable else None,
        "judge_self_kappa": kappa([(one.ours_first, one.theirs_first) for one in given]),
    }
    return {name: value for name, value in values.items() if value is not None}


def win_rates(scores: pd.DataFrame, clusters: Sequence[str], resamples: int, seed: int) -> tuple[dict[str, float], ...]:
    """Win rate and length-controlled win rate over the readable duels of one opponent, and their intervals.

    Args:
        scores: of `rows`.
        clusters: (N,) the dialogue of each row; duels of a dialogue are resampled together.
        resamples: of the bootstrap.
        seed: of the resamples.

    Returns:
        `judge_win_rate` and `judge_win_rate_lc`, 0..100; and `.low` and `.high` of both. Both empty without a readable
        duel.
    """
    known = scores["win"].notna().to_numpy()
    if not known.any():
        return {}, {}
    columns = {name: scores.loc[known, name].to_numpy(dtype=float) for name in ("win", "longer")}
    names = [name for name, one in zip(clusters, known, strict=True) if one]
    once = measured(columns, np.ones((1, len(names))))
    bounds = intervals(columns, None, resamples, seed, names, measured)
    return {name: float(value[0]) for name, value in once.items()}, bounds


def prefers(won: Numbers, ours: Numbers, theirs: Numbers) -> tuple[int, int]:
    """How often a judge prefers the reply that something is true of, where it is true of one of the two alone.

    Args:
        won: (N,) as `win` of `rows`.
        ours: (N,) 100 where it is true of the variant's reply, else 0.
        theirs: (N,) the same of the other reply.

    Returns:
        Duels in which the judge prefers the reply that it is true of, and duels in which it prefers either.
    """
    decided = np.isin(won, (0, 100)) & (ours != theirs)
    return int((decided & ((won == 100) == (ours > theirs))).sum()), int(decided.sum())


def measured(columns: Columns, weights: Numbers) -> dict[str, Numbers]:
    """The (R,) win rates under (R, N) weights of the duels."""
    total = weights.sum(1)
    plain = (weights @ columns["win"]) / total
    return {WIN: plain, f"{WIN}_lc": 100 * length_controlled(columns["win"] / 100, columns["longer"], weights)}


def length_controlled(won: Numbers, longer: Numbers, weights: Numbers) -> Numbers:
    """The win rate at equal length, after Dubois et al. 2024 (arXiv:2404.04475), without a term for the instruction.

    A logistic regression of the win on a constant and on tanh of the difference of lengths over its standard deviation;
    the rate is the prediction where the difference is 0.

    Args:
        won: (N,) 1, 0.5 or 0.
        longer: (N,) words of the variant's reply less the other's.
        weights: (R, N).

    Returns:
        (R,) rates, 0..1.
    """
    spread = float(np.std(longer)) or 1.0
    design = np.stack([np.ones_like(longer), np.tanh(longer / spread)], axis=1)
    coefficients = np.zeros((len(weights), 2))
    for _ in range(STEPS):
        expected = 1 / (1 + np.exp(-coefficients @ design.T))
        gradient = (weights * (won - expected)) @ design - PRIOR * coefficients
        curvature = np.einsum("rn,ni,nj->rij", weights * expected * (1 - expected), design, design) + PRIOR * np.eye(2)
        coefficients += np.linalg.solve(curvature, gradient[..., None])[..., 0]
    rate: Numbers = 1 / (1 + np.exp(-coefficients[:, 0]))
    return rate
