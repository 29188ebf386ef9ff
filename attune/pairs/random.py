"""Preference pairs with a random rejected reply: the control of the rules that choose it with care.

The rule: in each epoch, the rejected reply of a dialogue is drawn uniformly from the targets of all dialogues with any
other label (`opposite_emotion.draw`, with the same key). Replies with the chosen text are not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from attune.config.schema import Params
from attune.data.dialogue import Example
from attune.data.pair import Pair
from attune.pairs.opposite_emotion import build_pairs


def build(examples: Sequence[Example], pool: Sequence[Example], params: Params, epoch: int) -> list[Pair]:
    """One pair an example, in order of the ids; none where all other labels have only the chosen text."""
    ordered = sorted(pool, key=lambda example: example.id)
    labels = {example.label for example in examples}
    others = {label: [other for other in ordered if other.label != label] for label in labels}
    return build_pairs(examples, others, {label: label for label in labels}, seed=params.seed, epoch=epoch)
