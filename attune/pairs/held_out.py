"""Pairs that no model is trained on: of the test split for `preference_accuracy`, of the valid split for DPO's rounds.

They are made by the same rules as the pairs of training, with replies of their split and epoch 0, which is in no
training. An example without a rejected reply is answered, and not ranked. Rules that cannot make them so:

- dbt judges by a classifier; its held-out pairs need no judge: they reject a reply to the same label with another act.
- policy and epitome reject samples of a model; their held-out pairs, the same for all variants, are those of `random`.
- file has its own held-out pairs, with prompts of their own, each ranked in the row of a test example: at most as many
  as there are test examples, in a random order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from attune.config.schema import Params
from attune.data.dialogue import Example
from attune.data.examples import read_examples
from attune.data.keyed import random_subset
from attune.data.pair import Pair
from attune.labels.miti import read_adherence
from attune.labels.opposites import read_opposites
from attune.pairs.candidates import other_act_pairs
from attune.pairs.counselling import counselling_pairs, group_by_match, sides
from attune.pairs.file import read_preferences
from attune.pairs.opposite_emotion import build_pairs, group_by_label
from attune.pairs.rules import rule_of

VALID = Path("data/dialogues/valid.parquet")
HELD_OUT_EPOCH = 0


def held_out(
    examples: Sequence[Example], pairs: Callable[[Sequence[Example]], Sequence[Pair]], limit: int | None, seed: int
) -> list[tuple[Example, Pair | None]]:
    """Examples, each with its held-out pair or None, in order of their ids.

    Args:
        examples: of the split.
        pairs: the held-out pairs of a subset of them.
        limit: number of examples, a random subset; None: all.
        seed: of the run.
    """
    subset = sorted(random_subset(examples, limit, seed), key=lambda example: example.id)
    by_id = {pair.id: pair for pair in pairs(subset)}
    return [(example, by_id.get(example.id)) for example in subset]


def valid_pairs(params: Params) -> list[Pair]:
    """The pairs of a random subset of the valid split, `pairs.valid` examples, on which rounds of DPO are measured.

    Under rule opposite_emotion an example has none if the valid split lacks its label's opposite.
    """
    if not params.pairs.valid:
        return []
    examples = usable = read_examples(VALID, params.context)
    if params.pairs.rule == "opposite_emotion":
        opposites, labels = read_opposites(Path(params.pairs.table)), {example.label for example in examples}
        usable = [example for example in examples if opposites.get(example.label) in labels]
    pairs = partial(held_out_pairs, examples=examples, params=params)
    rows = held_out(usable, pairs, params.pairs.valid, params.seed)
    return [pair for _, pair in rows if pair is not None]


def held_out_pairs(part: Sequence[Example], examples: Sequence[Example], params: Params) -> Sequence[Pair]:
    """The held-out pairs of the examples in `part`, by the rule in `pairs.rule`.

    Args:
        part: examples that get pairs.
        examples: all of the split; their targets can be rejected.
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
        case "policy" | "epitome":
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
