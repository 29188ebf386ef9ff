"""Preference pairs against the model itself: the control of rejected replies that people wrote.

The rule: the human reply is chosen, and one sample of the model that the round starts from is rejected. No classifier
ranks them. A sample without words, or with the chosen text, gives no pair.
"""

from __future__ import annotations

from collections.abc import Iterable

from attune.data.dialogue import Example, normalise
from attune.data.pair import Pair
from attune.pairs.ranked import Source


def policy_pairs(examples: Iterable[Example], source: Source, epoch: int) -> list[Pair]:
    """The pairs of one epoch, in order of the ids.

    Args:
        examples: contexts and targets to make pairs of.
        source: of one sample an example (`policy_source`), keyed by (seed, epoch, example id).
        epoch: from 1.

    Returns:
        At most one pair an example. `rejected_id` is empty: no dialogue has the rejected reply.
    """
    ordered = sorted(examples, key=lambda example: example.id)
    return [
        Pair(e.id, epoch, e.context, e.target, sample.strip(), e.label, e.label, rejected_id="")
        for e, [sample] in zip(ordered, source(ordered).replies, strict=True)
        if normalise(sample) not in ("", normalise(e.target))
    ]
