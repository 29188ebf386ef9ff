"""Preference rules that are modules of this package, by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from attune.config.schema import Params
from attune.data.dialogue import Example
from attune.data.pair import Pair

Rule = Callable[[Sequence[Example], Sequence[Example], Params, int], list[Pair]]
"""`build(examples, pool, params, epoch)`: pairs of `examples`, whose rejected replies are targets of `pool`.

Epochs count from 1 in training; 0 is for held-out pairs. Draws must depend on nothing but `params.seed`, the epoch and
the example's id (`attune.data.keyed.uniform`), since the pairs of other epochs are made again to compare with them.
"""


def rule_of(name: str) -> Rule:
    """The function `build` of the module `attune.pairs.<name>`; `attune.config.schema` has checked that it exists."""
    build: Rule = import_module(f"attune.pairs.{name}").build
    return build
