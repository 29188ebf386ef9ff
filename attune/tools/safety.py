"""Show how well the rules that screen replies for safety read: precision and recall on labelled replies.

    python -m attune safety

prints the table of docs/safety.md, from the replies in `data/safety/replies.jsonl`: those held apart while the rules
were written, with 95 % intervals, and those that the rules were written by.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attune.runtime.cli import command_parser
from attune.scoring.safety.labelled import quality_table, read_labelled

REPLIES = Path("data/safety/replies.jsonl")


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    command_parser("safety", __doc__).parse_args(argv)
    print(quality_table(read_labelled(REPLIES)))
