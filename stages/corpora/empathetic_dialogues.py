"""EmpatheticDialogues (Rashkin et al. 2019, CC BY-NC 4.0): the original csv files to `Dialogue` records.

The files are unquoted: a comma inside text is written `_comma_`, so a line is split at every comma. The first columns
are `conv_id,utterance_idx,context,prompt,speaker_idx,utterance`; valid and test of the original archive carry a further
column of candidates. The speaker, who tells of the emotion, is the user; the listener the assistant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path

from stages.corpora.csv_rows import is_number
from stages.dialogues import SPLITS, CorpusError, Dialogue, Role, Turn, join_turns
from stages.files import read_lines

COLUMNS = ["conv_id", "utterance_idx", "context", "prompt", "speaker_idx", "utterance"]
ARTEFACT = "hit:"


def read(folder: Path) -> tuple[list[Dialogue], Counter[str]]:
    """Read the three splits of `folder`.

    Returns:
        The dialogues in file order, and how many were dropped by reason (`<split>_collection_artefact`).

    Raises:
        CorpusError: a file is missing, is no UTF-8, or has a row that does not fit the format.
    """
    dialogues: list[Dialogue] = []
    dropped: Counter[str] = Counter()
    for split in SPLITS:
        for dialogue in _read_split(folder / f"{split}.csv", split):
            if any(ARTEFACT in turn.text for turn in dialogue.turns):
                dropped[f"{split}_collection_artefact"] += 1
            else:
                dialogues.append(dialogue)
    return dialogues, dropped


def _read_split(path: Path, split: str) -> Iterator[Dialogue]:
    seen: set[str] = set()
    for conv_id, group in groupby(_rows(path), key=lambda row: row[1][0]):
        rows = sorted(group, key=lambda row: int(row[1][1]))
        line, first = rows[0]
        if conv_id in seen:
            raise CorpusError(f"{path}:{line}: the rows of dialogue {conv_id!r} are not together")
        seen.add(conv_id)
        for (_, one), (other, another) in pairwise(rows):
            if int(one[1]) == int(another[1]):
                raise CorpusError(f"{path}:{other}: utterance_idx {another[1]} of dialogue {conv_id!r} is there twice")
        for other, row in rows:
            if row[2] != first[2]:
                raise CorpusError(f"{path}:{other}: context {row[2]!r}, but {first[2]!r} in line {line}")
        # Worker ids in the original, 1 and 0 elsewhere: in both the first to speak is the one who tells.
        speaker = first[4]
        turns = join_turns(_turn(row, row[4] == speaker) for _, row in rows)
        yield Dialogue(f"{split}/{conv_id}", "empathetic_dialogues", split, first[2], turns)


def _turn(row: list[str], is_speaker: bool) -> Turn:
    role: Role = "user" if is_speaker else "assistant"
    return Turn(role, row[5].replace("_comma_", ",").strip())


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines of the file, numbered from 1 and split at commas, checked."""
    lines = read_lines(path, CorpusError, "run stage `download`")
    if lines[0].split(",")[: len(COLUMNS)] != COLUMNS:
        raise CorpusError(f"{path}:1: the header should begin with {','.join(COLUMNS)}, found {lines[0][:80]!r}")
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            yield number, _checked(line.split(","), path, number)


def _checked(row: list[str], path: Path, number: int) -> list[str]:
    if len(row) < len(COLUMNS):
        raise CorpusError(f"{path}:{number}: {len(row)} columns, expected at least {len(COLUMNS)}: {row[0][:40]!r}")
    if not is_number(row[1]):
        raise CorpusError(f"{path}:{number}: utterance_idx {row[1][:40]!r} is no number")
    for i, name in enumerate(COLUMNS):
        # The situation is not read.
        if name != "prompt" and not row[i].strip():
            raise CorpusError(f"{path}:{number}: empty {name}")
    return row
