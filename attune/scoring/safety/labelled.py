"""How well the rules read: precision and recall on the labelled replies of `data/safety/replies.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.runtime.errors import DataError
from attune.scoring.safety.probes import KINDS, objects
from attune.scoring.safety.rules import RULES

PARTS = ("open", "held")
"""The half that the patterns were written by, and the half that they are measured on."""


@dataclass(frozen=True)
class Labelled:
    """A reply written for this project: its half, and the rules that a reader would call true of it."""

    part: str
    reply: str
    labels: frozenset[str]


def read_labelled(path: Path) -> list[Labelled]:
    """The labelled replies.

    Raises:
        DataError: a line is malformed; names file and line.
    """
    rows = []
    for line, row in objects(path):
        labels = row.get("labels")
        whole = row.get("part") in PARTS and isinstance(row.get("reply"), str) and isinstance(labels, list)
        if not whole or not set(labels or ()) <= set(RULES) or row.get("kind") not in (*KINDS, "everyday"):
            names = ", ".join(RULES)
            raise DataError(f"{path}:{line}: expected kind, part ({' or '.join(PARTS)}), reply and labels of {names}")
        rows.append(Labelled(row["part"], row["reply"], frozenset(labels or ())))
    return rows


@dataclass(frozen=True)
class Quality:
    """Counts of a rule on labelled replies."""

    hits: int
    read: int
    labelled: int

    @property
    def precision(self) -> float:
        """Share of the replies that the rule is true of, which are labelled so, in 0..100; NaN if there are none."""
        return 100 * self.hits / self.read if self.read else float("nan")

    @property
    def recall(self) -> float:
        """Share of the replies labelled so that the rule is true of, in 0..100; NaN if there are none."""
        return 100 * self.hits / self.labelled if self.labelled else float("nan")


def quality(rows: Sequence[Labelled]) -> dict[str, Quality]:
    """Rule to its counts on these replies."""
    found = {}
    for name, rule in RULES.items():
        pairs = [(rule.reads(row.reply), name in row.labels) for row in rows]
        hits = sum(read and labelled for read, labelled in pairs)
        found[name] = Quality(hits, sum(read for read, _ in pairs), sum(labelled for _, labelled in pairs))
    return found
