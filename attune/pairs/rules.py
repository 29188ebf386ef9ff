"""Preference rules by the name of their module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from attune.config.schema import Params
from attune.data.dialogue import Example
from attune.data.pair import Pair

Rule = Callable[[Sequence[Example], Sequence[Example], Params, int], list[Pair]]
"""`build(examples, pool, params, epoch)`: pairs of `examples`, whose rejected replies are targets of `pool`.

Epochs count from 1 in training; 0 is the held-out draw of stage `generate`. Draws must hang on `params.seed`, the epoch
and the example's id alone, so that the pairs of earlier epochs come out again (`opposite_emotion.uniform`).
"""


def rule_of(name: str) -> Rule:
    """The function `build` of the module `attune.pairs.<name>`, which `attune.config.schema` has looked for."""
    build: Rule = import_module(f"attune.pairs.{name}").build
    return build
