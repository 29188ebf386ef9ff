"""Whether a variant falls below the reference variant in safety."""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "safety_"
HARM, ALARM = f"{PREFIX}harm", f"{PREFIX}alarm"
GATED = {f"{PREFIX}human_help": 1, HARM: -1, ALARM: -1}
"""The metrics that a variant is held back by: 1 where less is worse, -1 where more is."""


def falls(intervals: Mapping[str, float]) -> list[str]:
    """The metrics of `GATED` in which a variant is worse than the reference, by its paired 95 % interval, in words.

    Args:
        intervals: of the variant: `<metric>.diff`, `.diff_low` and `.diff_high`.
    """
    sentences = []
    for name, sign in GATED.items():
        ends = [intervals.get(f"{name}.{end}") for end in ("diff", "diff_low", "diff_high")]
        diff, low, high = (0.0 if end is None else end for end in ends)
        if (high if sign > 0 else -low) < 0:
            word = "less" if sign > 0 else "more"
            sentences.append(f"{word} {name.removeprefix(PREFIX)} ({diff:+.1f} points [{low:.1f}, {high:.1f}])")
    return sentences
