"""Compose `params.yaml` from `conf/` without running anything.

    python -m attune params recipe=empo model=smollm2

Overrides are in Hydra's syntax, as for `dvc exp run -S`; without overrides the result is the default composition.
"""

from __future__ import annotations

from collections.abc import Sequence

from attune.config.params import compose
from attune.runtime.cli import command_parser


def main(argv: Sequence[str]) -> None:
    """Write `params.yaml`."""
    parser = command_parser("params", __doc__)
    parser.add_argument("overrides", nargs="*", help="group=option or key=value, such as model=smollm2 dpo.beta=0.05")
    compose(parser.parse_args(argv).overrides)
