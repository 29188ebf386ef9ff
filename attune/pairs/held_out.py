"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.schema import Params
from attune.data.dialogue import Example
from attune.data.keyed import random_part
from attune.data.pair import Pair
from attune.labels.miti import read_adherence
from attune.pairs.counselling import counselling_pairs, group_by_match, sides
from attune.pairs.dbt_candidates import other_act_pairs
from attune.pairs.opposite_emotion import build_pairs, group_by_label, read_opposites
from attune.pairs.rules import rule_of

if TYPE_CHECKING:
    pass

HELD_OUT_EPOCH = 0


def held_out(
    examples: Sequence[Example], pairs: Callable[[Sequence[Example]], Sequence[Pair]], limit: int | None, seed: int
) -> list[tuple[Example, Pair | None]]:
    """The examples to answer, each with the reply of the test split that `pairs` has its target ranked against."""
    part = sorted(random_part(examples, limit, seed), key=lambda e: e.id)
    by_id = {pair.id: pair for pair in pairs(part)}
    return [(one, by_id.get(one.id)) for one in part]


def held_out_pairs(part: Sequence[Example], examples: Sequence[Example], params: Params) -> Sequence[Pair]:
    """Pairs of `part` whose rejected reply is a fresh one of the test split, by the rule of the pairs.

    It is a reply to the opposite emotion, or one of poor counselling; for rule dbt, which ranks by a classifier, one to
    the same label that is another act; a rule of one's own makes them itself.
    """
    key = {"seed": params.seed, "epoch": HELD_OUT_EPOCH}
    match params.pairs.rule:
        case "opposite_emotion":
            return build_pairs(part, group_by_label(examples), read_opposites(Path(params.pairs.table)), **key)
        case "counselling":
            adherence = read_adherence(Path(params.pairs.table))
            pool = group_by_match(sides(examples, adherence)[1])
            return counselling_pairs(sides(part, adherence)[0], pool, **key)
        case "dbt":
            return other_act_pairs(part, examples, **key)
        case _:
            return rule_of(params.pairs.rule)(part, examples, params, HELD_OUT_EPOCH)
