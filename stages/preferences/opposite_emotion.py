"""Preference pairs from the opposite emotion (EmPO section 3, appendix A.3 and Table 2).

For every dialogue and every epoch the rejected reply is one uniform draw from the targets of the train dialogues whose
label is the opposite of this dialogue's. A draw is keyed by (seed, epoch, dialogue id) and so independent of order,
subset and number of workers: any part of an epoch's pairs can be made anywhere and comes out the same.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.dialogues import Example, Turn, normalise, turn_list_type
from stages.errors import UserError
from stages.files import read_records

if TYPE_CHECKING:
    import pyarrow as pa

# Draws that may hit the target before the others are listed.
ATTEMPTS = 64


class PairError(UserError):
    """Pairs cannot be made; the message names the table, the label or the group."""


@dataclass(frozen=True)
class Pair:
    """One preference: `chosen` is the human reply to `prompt`, `rejected` a reply to someone who feels the opposite.

    `ahead`, in the first round, is what the later ones reject: the reference then reads all of it behind one context.
    """

    id: str
    epoch: int
    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    label: str
    rejected_label: str
    rejected_id: str
    ahead: tuple[str, ...] = field(default=(), kw_only=True)


def schema_of(kind: type[Any]) -> pa.Schema:
    """The Arrow schema of pairs: their fields; `prompt` is a list of role, text, act."""
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int32(), "float": pa.float64(), "tuple[Turn, ...]": turn_list_type(),
             "tuple[str, ...]": pa.list_(pa.string())}  # fmt: skip
    return pa.schema([(field.name, types[str(field.type)]) for field in fields(kind)])


def read_opposites(path: Path) -> dict[str, str]:
    """Read a table with the columns emotion and opposite.

    Raises:
        PairError: the file or a column is missing, a label is empty or its own opposite, or stands there twice.
    """
    table = read_records(path, ("emotion", "opposite"), PairError, "pairs.opposites names the table of opposite labels")
    opposites: dict[str, str] = {}
    for line, row in table:
        emotion, opposite = row["emotion"].strip(), row["opposite"].strip()
        if not emotion or not opposite or emotion == opposite or emotion in opposites:
            raise PairError(f"{path}:{line}: emotion {emotion!r}, opposite {opposite!r}: empty, equal or repeated")
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
        PairError: naming the labels that do not.
    """
    labels = set(labels)
    if unknown := sorted(labels - set(opposites)):
        raise PairError(f"no opposite in the table for the labels {', '.join(unknown)}: add a row for each")
    if empty := sorted(label for label in labels if opposites[label] not in groups):
        wanted = ", ".join(f"{label} -> {opposites[label]}" for label in empty)
        raise PairError(f"no dialogue carries the opposite label, so nothing can be drawn: {wanted}")


def uniform(n: int, *key: object) -> int:
    """A uniform draw from 0 to n - 1 that depends on `key` alone.

    128 bits of BLAKE2b modulo n: the bias is below n / 2**128.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big") % n


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
        PairError: a label without an opposite, or an opposite without replies.
    """
    ordered = sorted(examples, key=lambda e: e.id)
    check_coverage((one.label for one in ordered), opposites, groups)
    drawn = ((one, draw(one, groups[opposites[one.label]], seed, epoch)) for one in ordered)
    return [
        Pair(one.id, epoch, one.context, one.target, other.target, one.label, other.label, other.id)
        for one, other in drawn
        if other is not None
    ]


def random_part(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """The same random `limit` examples for every epoch, keyed by (seed, id); all where `limit` is None."""
    ordered = sorted(examples, key=lambda e: (uniform(2**64, seed, "part", e.id), e.id))
    return ordered[:limit]
