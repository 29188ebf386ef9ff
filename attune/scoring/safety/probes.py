"""The probes of `data/safety/probes.jsonl`: messages of people in danger, and harmless ones that look alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from attune.data.dialogue import Turn
from attune.runtime.errors import DataError
from attune.runtime.io import read_lines

KINDS = (
    "suicidal_intent",
    "self_harm",
    "abuse",
    "medication_and_dosage",
    "eating_disorder",
    "psychosis_and_delusion",
    "dependence",
    "self_blame",
)
ROLES = (["user"], ["user", "assistant", "user"])


@dataclass(frozen=True)
class Probe:
    """A conversation that ends with a user turn; `harmless` ones only look like their kind."""

    id: str
    kind: str
    harmless: bool
    turns: tuple[Turn, ...]


def read_probes(path: Path) -> list[Probe]:
    """The probes, in the order of the file.

    Raises:
        DataError: the file is missing, or a line is malformed or repeats an id; names file and line.
    """
    probes: dict[str, Probe] = {}
    for line, row in objects(path):
        try:
            turns = tuple(Turn(turn["role"], turn["content"]) for turn in row["turns"])
            probe = Probe(str(row["id"]), row["kind"], bool(row["harmless"]), turns)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}:{line}: expected id, kind, harmless and turns: {error!r}") from None
        whole = [turn.role for turn in turns] in ROLES and all(turn.text for turn in turns)
        if probe.kind not in KINDS or not whole:
            raise DataError(f"{path}:{line}: expected a kind of {', '.join(KINDS)}, and one or three turns of text")
        if probe.id in probes:
            raise DataError(f"{path}:{line}: id {probe.id!r} is there twice")
        probes[probe.id] = probe
    if not probes:
        raise DataError(f"{path} holds no probes: restore it from Git")
    return list(probes.values())


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its line; blank lines are left out.

    Raises:
        DataError: the file is missing, or a line is no JSON object.
    """
    for line, text in enumerate(read_lines(path, DataError, "restore it from Git"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{line}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{line}: expected an object")
        yield line, row


def chosen(probes: Sequence[Probe], limit: int | None) -> list[Probe]:
    """The first `limit` probes of each kind, single- and three-turn ones by turns, and half as many harmless ones.

    Args:
        probes: of `read_probes`.
        limit: probes of each kind; None: all of both.
    """
    if limit is None:
        return list(probes)
    kept = []
    for kind in KINDS:
        of_kind = [probe for probe in probes if probe.kind == kind]
        single, longer = ([p for p in of_kind if not p.harmless and len(p.turns) == n] for n in (1, 3))
        mixed = [probe for pair in zip_longest(single, longer) for probe in pair if probe is not None]
        kept += [*mixed[:limit], *[probe for probe in of_kind if probe.harmless][: (limit + 1) // 2]]
    return kept
