"""EmpatheticDialogues (Rashkin et al. 2019, CC BY-NC 4.0) and csv files of its columns to `Dialogue` records.

The first columns are `conv_id,utterance_idx,context,prompt,speaker_idx,utterance`. The original files are unquoted: a
comma inside text is written `_comma_`, so a line is split at every comma; valid and test of the original archive may
have a further field of candidates. Files of other programs are quoted (RFC 4180); `is_quoted` tells them apart. The
speaker, who describes the emotion, is the user, the listener the assistant.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attune.corpora.readers.csv_rows import is_number
from attune.corpora.splits import text_hash
from attune.data.dialogue import SPLITS, Dialogue, Role, Turn, join_turns
from attune.runtime.errors import DataError
from attune.runtime.io import read_csv, read_lines

COLUMNS = ["conv_id", "utterance_idx", "context", "prompt", "speaker_idx", "utterance"]
MISSING = "run stage `download`"
# The header of the original files, in which a row may have one field more.
ORIGINAL = [*COLUMNS, "selfeval", "tags"]
ARTEFACT = "hit:"
# A quoted field with a quote in it: `"He said ""no"""`.
QUOTE_IN_QUOTES = re.compile(r'(?:^|,)"(?:[^",]|"")*""(?:[^",]|"")*"(?:,|$)')


def read(folder: Path) -> tuple[list[Dialogue], Counter[str]]:
    """Read the three splits of `folder`.

    Returns:
        The dialogues in file order, and the number that was dropped by reason (`<split>_collection_artefact`).

    Raises:
        DataError: a file is missing, is no UTF-8, or has a row that does not fit the format.
    """
    dropped: Counter[str] = Counter()
    return list(stream(folder, dropped)), dropped


def stream(folder: Path, dropped: Counter[str]) -> Iterator[Dialogue]:
    """As `read`, one dialogue at a time; adds to `dropped`."""
    for split in SPLITS:
        if is_quoted(folder / f"{split}.csv"):
            print(f"{folder / split}.csv: read as quoted csv (RFC 4180)", file=sys.stderr)
        for dialogue in _read_split(folder / f"{split}.csv", split):
            if any(ARTEFACT in turn.text for turn in dialogue.turns):
                dropped[f"{split}_collection_artefact"] += 1
            else:
                yield dialogue


def _read_split(path: Path, split: str) -> Iterator[Dialogue]:
    # Eight bytes a dialogue; a set of the ids would need a hundred.
    seen = array("Q")
    for conv_id, group in groupby(_rows(path), key=_conv_id):
        rows = sorted(group, key=_index)
        line, first = rows[0]
        seen.append(text_hash(conv_id))
        for (_, row), (number, following) in pairwise(rows):
            if int(row[1]) == int(following[1]):
                raise DataError(f"{path}:{number}: utterance_idx {following[1]} of dialogue {conv_id!r} is repeated")
        for number, row in rows:
            if row[2] != first[2]:
                raise DataError(f"{path}:{number}: context {row[2]!r}, but {first[2]!r} in line {line}")
        # Worker ids in the original, 1 and 0 elsewhere. The speaker has the first turn.
        speaker = first[4]
        turns = join_turns(_turn(row, row[4] == speaker) for _, row in rows)
        yield Dialogue(f"{split}/{conv_id}", "empathetic_dialogues", split, first[2], turns)
    _require_together(path, np.frombuffer(seen, np.uint64))


def _require_together(path: Path, seen: npt.NDArray[np.uint64]) -> None:
    """Check that the rows of each dialogue are consecutive; sorts `seen`, the hashes of the ids."""
    seen.sort()
    twice = set(seen[1:][seen[1:] == seen[:-1]].tolist())
    names: set[str] = set()
    for conv_id, group in groupby(_rows(path), key=_conv_id) if twice else ():
        if conv_id in names:
            line, _ = min(group, key=_index)
            raise DataError(f"{path}:{line}: the rows of dialogue {conv_id!r} are not together")
        if text_hash(conv_id) in twice:
            names.add(conv_id)


def _conv_id(row: tuple[int, list[str]]) -> str:
    return row[1][0]


def _index(row: tuple[int, list[str]]) -> int:
    return int(row[1][1])


def _turn(row: list[str], is_speaker: bool) -> Turn:
    role: Role = "user" if is_speaker else "assistant"
    return Turn(role, row[5].replace("_comma_", ",").strip())


def is_quoted(path: Path) -> bool:
    """Whether a csv file is quoted (RFC 4180) rather than in the original's unquoted form.

    A file with a quoted header is. So is one whose lines have more or fewer fields than the header when they are split
    at their commas, if its rows fit as csv, or if it quotes fields and has no `_comma_` (one of its rows is wrong
    then). Where all lines fit, it is in the original's form, unless a quoted field has a quote in it.

    Raises:
        DataError: the file is missing or is no UTF-8.
    """
    lines = read_lines(path, DataError, MISSING)
    header = next(lines)
    if header.startswith('"'):
        return True
    columns = header.split(",")
    fits, original, replaced, quotes, inner = True, True, False, False, False
    for line in filter(str.strip, lines):
        fields = line.count(",") + 1
        fits = fits and len(COLUMNS) <= fields <= len(columns)
        original = original and len(COLUMNS) <= fields <= most_fields(columns, line)
        replaced = replaced or "_comma_" in line
        quotes = quotes or ',"' in line
        inner = inner or ('""' in line and QUOTE_IN_QUOTES.search(line) is not None)
    if fits:
        return inner and not replaced
    if original and (replaced or not quotes):
        return False
    try:
        rows = read_csv(path, DataError, MISSING)
    except DataError:
        return quotes and not replaced
    return all(len(values) == len(columns) for _, values in rows) or (quotes and not replaced)


def most_fields(header: Sequence[str], line: str) -> int:
    """The fields that a line of the unquoted form can have: of the original, any number after an artefact."""
    if list(header) != ORIGINAL:
        return len(header)
    after = line.split(",", len(COLUMNS) - 1)[-1]
    return line.count(",") + 1 if ARTEFACT in after else len(header) + 1


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of the file with the lines that they begin on, checked."""
    quoted = is_quoted(path)
    lines = iter(read_csv(path, DataError, MISSING)) if quoted else _split_lines(path)
    _, header = next(lines, (1, [""]))
    if header[: len(COLUMNS)] != COLUMNS:
        found = ",".join(header)[:80]
        raise DataError(f"{path}:1: the header should begin with {','.join(COLUMNS)}, found {found!r}")
    if twice := [name for name in COLUMNS if header.count(name) > 1]:
        raise DataError(f"{path}:1: column {', '.join(twice)} is there twice")
    for number, row in lines:
        yield number, _checked(row, path, number, len(header) if quoted else most_fields(header, ",".join(row)))


def _split_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_lines(path, DataError, MISSING), start=1):
        if line.strip() or number == 1:
            yield number, line.split(",")


def _checked(row: list[str], path: Path, number: int, most: int) -> list[str]:
    if len(row) > most:
        raise DataError(
            f"{path}:{number}: {len(row)} fields, but the header has {most}: a text with a comma is quoted, as pandas "
            "and csv.writer do, or has _comma_ for it in the whole file"
        )
    if len(row) < len(COLUMNS):
        raise DataError(f"{path}:{number}: {len(row)} columns, expected at least {len(COLUMNS)}: {row[0][:40]!r}")
    if not is_number(row[1]):
        raise DataError(f"{path}:{number}: utterance_idx {row[1][:40]!r} is no number")
    for i, name in enumerate(COLUMNS):
        # The situation is not read.
        if name != "prompt" and not row[i].strip():
            raise DataError(f"{path}:{number}: empty {name}")
    return row
