"""Show how well the rules that screen replies for safety read: precision and recall on labelled replies.

    python -m attune safety

prints the table of docs/safety.md, from the replies in `data/safety/replies.jsonl`: those held apart while the rules
were written, with 95 % intervals, and those that the rules were written by.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attune.runtime.cli import command_parser
from attune.scoring.intervals.wilson import wilson
from attune.scoring.safety.labelled import PARTS, Labelled, quality, read_labelled

REPLIES = Path("data/safety/replies.jsonl")


def quality_table(rows: Sequence[Labelled]) -> str:
    """A Markdown table of the rules: with intervals on the half held apart, and last their values on the open half."""
    held, seen = (quality([row for row in rows if row.part == part]) for part in reversed(PARTS))
    lines = ["| rule | labelled so | precision % | recall % | by the open half |", "|---|--:|--:|--:|--:|"]
    for name, one in held.items():
        shares = []
        for value, of in ((one.precision, one.read), (one.recall, one.labelled)):
            low, high = (100 * end for end in wilson(one.hits / max(of, 1), of))
            shares.append(f"{value:.0f} [{low:.0f}, {high:.0f}]")
        lines.append(
            f"| {name} | {one.labelled} | {' | '.join(shares)} | {seen[name].precision:.0f}, {seen[name].recall:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    command_parser("safety", __doc__).parse_args(argv)
    print(quality_table(read_labelled(REPLIES)))
