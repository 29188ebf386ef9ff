"""Preference pairs from the opposite emotion (EmPO section 3, appendix A.3 and Table 2).

The rule: in each epoch, the rejected reply of a dialogue is drawn uniformly from the targets of the train dialogues
with the opposite label. Replies with the chosen text are not drawn.

`draw` is the rule. `build_pairs` applies it to examples in memory (held-out pairs), `opposite_emotion_stream` to
corpora that need not fit into memory (training).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attune.data.dialogue import Example, normalise
from attune.data.keyed import uniforms
from attune.data.pair import Pair
from attune.labels.opposites import check_coverage

Positions = npt.NDArray[np.int64]
Texts = npt.NDArray[Any]
"""Normalised texts, or 64-bit keys of them (`text_keys`): `draw` only compares them."""

# Draws that may hit the chosen text before the other texts are listed.
ATTEMPTS = 64


def draw(ids: Sequence[str], chosen: Texts, group: Texts, seed: int, epoch: int) -> Positions:
    """The rejected reply of each example: one uniform draw from the replies of `group` that differ from its target.

    Rejection sampling: attempt a of an example is position `uniform(len(group), seed, epoch, id, a)` of the group; the
    first attempt that hits another text than the chosen one counts. A draw depends on nothing but this key and the
    group, so any subset of the examples, in any order and on any number of workers, has the same draws.

    Args:
        ids: (N,) of the examples.
        chosen: (N,) texts of their targets.
        group: (M,) texts of the candidates, in order of their examples' ids.
        seed: of the run.
        epoch: from 1 in training; 0 for held-out pairs.

    Returns:
        (N,) positions in `group`; -1 if it holds no other text.
    """
    drawn = np.full(len(ids), -1)
    if not len(group):
        return drawn
    names, left = np.array(ids, dtype=object), np.arange(len(ids))
    for attempt in range(ATTEMPTS):
        candidate = uniforms(len(group), names[left], (seed, epoch), (attempt,)).astype(np.int64)
        differs = group[candidate] != chosen[left]
        drawn[left[differs]] = candidate[differs]
        left = left[~differs]
        if not len(left):
            return drawn
    # Nearly all of the group has the chosen text, so list the others; this loop has one step or few.
    for text in np.unique(chosen[left]):
        same, others = left[chosen[left] == text], np.flatnonzero(group != text)
        if len(others):
            drawn[same] = others[uniforms(len(others), names[same], (seed, epoch), (ATTEMPTS,)).astype(np.int64)]
    return drawn


def draw_examples(examples: Sequence[Example], group: Sequence[Example], seed: int, epoch: int) -> list[Example | None]:
    """`draw` for examples in memory: for each one the example whose target it rejects.

    Args:
        examples: (N,) that get pairs.
        group: the candidates, in order of their ids.
        seed: as for `draw`.
        epoch: as for `draw`.
    """
    chosen, texts = (np.array([normalise(e.target) for e in some], dtype=object) for some in (examples, group))
    positions = draw([example.id for example in examples], chosen, texts, seed, epoch)
    return [group[position] if position >= 0 else None for position in positions.tolist()]


def build_pairs(
    examples: Iterable[Example],
    groups: Mapping[str, Sequence[Example]],
    opposites: Mapping[str, str],
    *,
    seed: int,
    epoch: int,
) -> list[Pair]:
    """The pairs of one epoch, in order of the example ids.

    Args:
        examples: contexts and targets to make pairs of.
        groups: candidates by label (`group_by_label` of the train examples).
        opposites: label to opposite label.
        seed: as for `draw`.
        epoch: as for `draw`.

    Returns:
        One pair an example; none for an example whose opposite group holds no other text than its target.

    Raises:
        DataError: a label without an opposite, or an opposite without replies.
    """
    by_label = group_by_label(examples)
    check_coverage(by_label, opposites, groups)
    pairs = [
        Pair(e.id, epoch, e.context, e.target, rejected.target, e.label, rejected.label, rejected.id)
        for label, some in by_label.items()
        for e, rejected in zip(some, draw_examples(some, groups[opposites[label]], seed, epoch), strict=True)
        if rejected is not None
    ]
    return sorted(pairs, key=lambda pair: pair.id)


def group_by_label(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """The examples of each label, in order of their ids, so that the order of the input does not matter."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: e.id):
        groups[example.label].append(example)
    return dict(groups)
