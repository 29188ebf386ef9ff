"""Pairs of human replies to test contexts, for the metric `preference_accuracy`: does a model prefer the target?

They are made by the same rules as the pairs of training, with replies of the test split and epoch 0, which is in no
training. An example without a rejected reply is answered, and not ranked. Rules that cannot make them so:

- dbt judges by a classifier; its held-out pairs need no judge: they reject a reply to the same label with another act.
- policy rejects samples of a model; its held-out pairs, the same for all variants, are those of `random`.
- file has its own held-out pairs, with prompts of their own, each ranked in the row of a test example: at most as many
  as there are test examples, in a random order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from attune.config.schema import Params
from attune.data.dialogue import Example
from attune.data.keyed import random_subset
from attune.data.pair import Pair
from attune.labels.miti import read_adherence
from attune.labels.opposites import read_opposites
from attune.pairs.counselling import counselling_pairs, group_by_match, sides
from attune.pairs.dbt_candidates import other_act_pairs
from attune.pairs.file import read_preferences
from attune.pairs.opposite_emotion import build_pairs, group_by_label
from attune.pairs.rules import rule_of

HELD_OUT_EPOCH = 0


def held_out(
    examples: Sequence[Example], pairs: Callable[[Sequence[Example]], Sequence[Pair]], limit: int | None, seed: int
) -> list[tuple[Example, Pair | None]]:
    """Test examples, each with its held-out pair or None, in order of their ids.

    Args:
        examples: of the test split.
        pairs: the held-out pairs of a subset of them.
        limit: number of examples, a random subset; None: all.
        seed: of the run.
    """
    subset = sorted(random_subset(examples, limit, seed), key=lambda example: example.id)
    by_id = {pair.id: pair for pair in pairs(subset)}
    return [(example, by_id.get(example.id)) for example in subset]


def held_out_pairs(part: Sequence[Example], examples: Sequence[Example], params: Params) -> Sequence[Pair]:
    """The held-out pairs of the examples in `part`, by the rule in `pairs.rule`.

    Args:
        part: examples that get pairs.
        examples: all of the test split; their targets can be rejected.
        params: of the run.
    """
    key = {"seed": params.seed, "epoch": HELD_OUT_EPOCH}
    match params.pairs.rule:
        case "opposite_emotion":
            return build_pairs(part, group_by_label(examples), read_opposites(Path(params.pairs.table)), **key)
        case "counselling":
            adherence = read_adherence(Path(params.pairs.table), "pairs.table")
            pool = group_by_match(sides(examples, adherence)[1])
            return counselling_pairs(sides(part, adherence)[0], pool, **key)
        case "dbt":
            return other_act_pairs(part, examples, **key)
        case "policy":
            return rule_of("random")(part, examples, params, HELD_OUT_EPOCH)
        case "file":
            return beside(part, read_preferences(params.pairs).held_out, params.seed)
        case _:
            return rule_of(params.pairs.rule)(part, examples, params, HELD_OUT_EPOCH)


def beside(part: Sequence[Example], pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """A random pair for each example, with the example's id and the pair's own prompt; none once the pairs run out."""
    drawn = random_subset(pairs, len(part), seed)
    ordered = sorted(part, key=lambda example: example.id)
    return [replace(pair, id=example.id) for example, pair in zip(ordered, drawn, strict=False)]
