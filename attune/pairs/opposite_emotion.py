"""Preference pairs from the opposite emotion (EmPO section 3, appendix A.3 and Table 2).

For every dialogue and every epoch the rejected reply is one uniform draw from the targets of the train dialogues whose
label is the opposite of this dialogue's. A draw is keyed by (seed, epoch, dialogue id) and so independent of order,
subset and number of workers: any part of an epoch's pairs can be made anywhere and comes out the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.data.dialogue import Example, normalise
from attune.data.keyed import uniform
from attune.data.pair import Pair
from attune.runtime.errors import DataError
from attune.runtime.io import read_records

if TYPE_CHECKING:
    pass

# Draws that may hit the target before the others are listed.
ATTEMPTS = 64


def read_opposites(path: Path) -> dict[str, str]:
    """Read a table with the columns emotion and opposite.

    Raises:
        DataError: the file or a column is missing, a label is empty or its own opposite, or stands there twice.
    """
    table = read_records(path, ("emotion", "opposite"), DataError, "pairs.table names the table of opposite labels")
    opposites: dict[str, str] = {}
    for line, row in table:
        emotion, opposite = row["emotion"].strip(), row["opposite"].strip()
        if not emotion or not opposite or emotion == opposite or emotion in opposites:
            raise DataError(f"{path}:{line}: emotion {emotion!r}, opposite {opposite!r}: empty, equal or repeated")
        opposites[emotion] = opposite
    return opposites


def group_by_label(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """The candidates of each label, in order of their ids, so that the order of the input does not matter."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for one in sorted(examples, key=lambda e: e.id):
        groups[one.label].append(one)
    return dict(groups)


def check_coverage(labels: Iterable[str], opposites: Mapping[str, str], groups: Collection[str]) -> None:
    """Every label has an opposite, and every opposite is among the labels that have replies to draw from.

    Raises:
        DataError: naming the labels that do not.
    """
    labels = set(labels)
    if unknown := sorted(labels - set(opposites)):
        raise DataError(f"no opposite in the table for the labels {', '.join(unknown)}: add a row for each")
    if empty := sorted(label for label in labels if opposites[label] not in groups):
        wanted = ", ".join(f"{label} -> {opposites[label]}" for label in empty)
        raise DataError(f"no dialogue carries the opposite label, so nothing can be drawn: {wanted}")


def draw(one: Example, group: Sequence[Example], seed: int, epoch: int) -> Example | None:
    """The rejected reply of `one` in `epoch`: uniform over the replies of `group` that differ from the target.

    A reply equal to the target (as normalised text) is drawn again, which leaves the rest uniform.
    None where the group holds no other reply.
    """
    if not group:
        return None
    chosen = normalise(one.target)
    for attempt in range(ATTEMPTS):
        candidate = group[uniform(len(group), seed, epoch, one.id, attempt)]
        if normalise(candidate.target) != chosen:
            return candidate
    others = [candidate for candidate in group if normalise(candidate.target) != chosen]
    return others[uniform(len(others), seed, epoch, one.id, ATTEMPTS)] if others else None


def build_pairs(
    examples: Iterable[Example],
    groups: Mapping[str, Sequence[Example]],
    opposites: Mapping[str, str],
    *,
    seed: int,
    epoch: int,
) -> list[Pair]:
    """The pairs of one epoch, in order of the dialogue ids.

    Args:
        examples: contexts and targets to make pairs of.
        groups: candidates by label (`group_by_label` of the train examples).
        opposites: label to opposite label.
        seed: of the run.
        epoch: from 1 in training; 0 is the held-out draw of stage `generate`.

    Returns:
        One pair an example; an example whose opposite group holds no other reply than its own target gives none.

    Raises:
        DataError: a label without an opposite, or an opposite without replies.
    """
    ordered = sorted(examples, key=lambda e: e.id)
    check_coverage((one.label for one in ordered), opposites, groups)
    drawn = ((one, draw(one, groups[opposites[one.label]], seed, epoch)) for one in ordered)
    return [
        Pair(one.id, epoch, one.context, one.target, other.target, one.label, other.label, other.id)
        for one, other in drawn
        if other is not None
    ]
