"""What DPO moved: the section of the summary, and the range of each number in which training is healthy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attune.report.tables import MOVEMENT_COLUMNS, Metrics, table

OUTSIDE = "‡"
# The largest KL, as a share of the reference's entropy, and the range of the entropy, relative to the reference's.
KL_SHARE = 0.1
ENTROPY_RANGE = 0.5, 1.5
RANGES = ("margin", "accuracy", "kl", "chosen_logp", "entropy")
"""The numbers that have a healthy range, in words:"""
HEALTHY = f"""margin above 0; reward accuracy above 50; KL below {KL_SHARE:.0%} of the starting entropy;
log-prob of chosen no lower than its start less the KL, which is about what any likely text loses in a policy that far
away: below that, training pushes down the chosen replies themselves; entropy from {ENTROPY_RANGE[0]:g} to
{ENTROPY_RANGE[1]:g} times its start, as a collapse ends in the same reply for everybody"""


def section(movement: Mapping[str, Sequence[Metrics]]) -> str:
    """The section of the summary; empty if no round was measured.

    Args:
        movement: as of `rounds`.
    """
    if not movement:
        return ""
    return f"""
## What DPO moved

{rounds(movement)}

The policy at the end of each round against the reference, on pairs of the valid split that no round is trained on.
margin: nats a pair, before beta. KL, log-probs and entropy: nats a token; KL and entropy along the chosen replies.
Healthy, by rules of thumb: {HEALTHY}. {OUTSIDE}: outside.
"""


def rounds(movement: Mapping[str, Sequence[Metrics]]) -> str:
    """The table of the rounds; `OUTSIDE` marks what left its healthy range.

    Args:
        movement: round to where its chain starts, and its end.
    """
    rows: dict[str, Metrics] = {}
    notes: dict[str, Mapping[str, str]] = {}
    for key, (start, end) in movement.items():
        if start not in rows.values():
            rows[f"before {key}"] = start
        rows[key], notes[key] = end, dict.fromkeys(unhealthy(start, end), OUTSIDE)
    return table("round", rows, MOVEMENT_COLUMNS, notes)


def unhealthy(start: Metrics, end: Metrics) -> list[str]:
    """The numbers of a round that are outside their healthy range.

    Args:
        start: where the round's chain starts.
        end: of the round.
    """
    low, high = (factor * start["entropy"] for factor in ENTROPY_RANGE)
    healthy = (
        end["margin"] > 0,
        end["accuracy"] > 50,
        end["kl"] <= KL_SHARE * start["entropy"],
        end["chosen_logp"] >= start["chosen_logp"] - end["kl"],
        low <= end["entropy"] <= high,
    )
    return [name for name, is_healthy in zip(RANGES, healthy, strict=True) if not is_healthy]
