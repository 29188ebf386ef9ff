"""Replies with published levels: a second training corpus, and what classifiers are compared with.

A folder of `replies-<system>.csv`, a row for each dialogue, with the columns

    context, reference, reply, reference_level_er, reference_level_ip, reference_level_ex, level_er, level_ip, level_ex

`context` is a JSON list of chat messages. The levels, 0 to 2, are those that other classifiers gave to the human reply
(`reference`) and to the system's (`reply`); a system whose levels are not published lacks the last three. Those of
EmPO's authors (Sotolar et al. 2024) are by RoBERTa, on the test dialogues of EmpatheticDialogues: `empo_human` in
`data/sources.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.classifiers.epitome.annotations import Annotation, Annotations, split_of
from attune.classifiers.epitome.levels import seeker_post
from attune.classifiers.epitome.model import MECHANISMS
from attune.data.chat import read_turn
from attune.data.dialogue import Turn, context_key
from attune.runtime.errors import DataError
from attune.runtime.io import read_records
from attune.runtime.records import CELL, parse_json, shown

PREFIX = "replies-"
PEOPLE = "people"
"""The system of the human replies."""
OWN = {mechanism: f"level_{short}" for mechanism, short in MECHANISMS.items()}
REFERENCE = {mechanism: f"reference_level_{short}" for mechanism, short in MECHANISMS.items()}
COLUMNS = ("context", "reference", "reply", *REFERENCE.values())
REMEDY = "put the published files into the folder of epitome.levels, or set epitome.levels to epitome.data (none)"


@dataclass(frozen=True)
class Levelled:
    """A reply with its published levels.

    `system` is who wrote it, `dialogue` what is equal for equal contexts, `levels` mechanism to 0, 1 or 2.
    """

    system: str
    dialogue: str
    seeker_post: str
    response_post: str
    levels: Mapping[str, int]

    @property
    def split(self) -> str:
        """That of the dialogue, whichever system replies."""
        return split_of(self.dialogue)


def read_levels(folder: Path) -> list[Levelled]:
    """The replies with levels: of each system in the order of its file, by name, and then people's, once.

    Raises:
        DataError: there are no files, a file is not readable or lacks a column, a cell is not what it should be, or two
            files have other levels of one human reply; names file, line and column, and what to do.
    """
    try:
        return _read(folder)
    except DataError as problem:
        raise DataError(f"{problem}: {REMEDY}") from None


def _read(folder: Path) -> list[Levelled]:
    paths = sorted(folder.glob(f"{PREFIX}*.csv"))
    if not paths:
        raise DataError(f"{folder} holds no {PREFIX}<system>.csv")
    systems: list[Levelled] = []
    people: dict[tuple[str, str], tuple[str, Levelled]] = {}
    for path in paths:
        for where, reply, human in _rows(path):
            systems += [reply] if reply else []
            first, known = people.setdefault((human.dialogue, human.response_post), (where, human))
            if known.levels != human.levels:
                names = ", ".join(REFERENCE.values())
                raise DataError(f"{where}, columns {names}: other levels of the human reply than in {first}")
    return [*systems, *(human for _, human in people.values())]


def _rows(path: Path) -> Iterator[tuple[str, Levelled | None, Levelled]]:
    """The place of each row, the system's reply if its levels are published, and the human reply."""
    rows = read_records(path, None, DataError, "")
    header = rows[0][1] if rows else {}
    wanted = [*COLUMNS, *(OWN.values() if any(name in header for name in OWN.values()) else ())]
    if lost := [name for name in wanted if name not in header]:
        raise DataError(f"{path}:1: no rows, or no column {', '.join(lost)}")
    system = path.stem.removeprefix(PREFIX)
    for line, cells in rows:
        where = f"{path}:{line}"
        context = _context(cells["context"], where)
        dialogue, post = context_key(context), seeker_post(context)
        human = Levelled(PEOPLE, dialogue, post, _text(cells, "reference", where), _levels(cells, REFERENCE, where))
        reply = _text(cells, "reply", where)
        levels = _levels(cells, OWN, where) if len(wanted) > len(COLUMNS) else None
        yield where, Levelled(system, dialogue, post, reply, levels) if levels else None, human


def _context(text: str, where: str) -> tuple[Turn, ...]:
    place = f"{where}, column context"
    messages = parse_json(text, place, DataError, CELL)
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: expected a list of chat messages, found {shown(messages)}")
    return tuple(read_turn(message, place, DataError) for message in messages)


def _text(cells: Mapping[str, str], column: str, where: str) -> str:
    if not cells[column].strip():
        raise DataError(f"{where}, column {column}: empty")
    return cells[column]


def _levels(cells: Mapping[str, str], columns: Mapping[str, str], where: str) -> dict[str, int]:
    for column in columns.values():
        if cells[column] not in ("0", "1", "2"):
            raise DataError(f"{where}, column {column}: {cells[column][:40]!r} is none of 0, 1, 2")
    return {mechanism: int(cells[column]) for mechanism, column in columns.items()}


def together(annotations: Annotations, levelled: Sequence[Levelled]) -> dict[str, list[Annotation]]:
    """The annotations of each mechanism, and after them the replies with published levels, which have no rationales."""
    return {
        mechanism: [
            *annotations[mechanism],
            *(Annotation(row.seeker_post, row.response_post, row.levels[mechanism], None) for row in levelled),
        ]
        for mechanism in MECHANISMS
    }
