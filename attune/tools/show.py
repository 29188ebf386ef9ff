"""Show the result of the last run on one screen: a verdict, the main numbers, two replies before and after.

    python -m attune show

`make repro` ends with it. It reads what the stages wrote and runs nothing; `reports/summary.md` has all numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from attune.config.params import load
from attune.report.first_screen import first_screen
from attune.runtime.cli import command_parser


def main(argv: Sequence[str]) -> None:
    """Print the screen."""
    command_parser("show", __doc__).parse_args(argv)
    print(first_screen(load()), end="")
