"""Sessions of addiction counselling at UFJF (private: 15 sessions, 13 patients) to `Dialogue` records.

The owners of the recordings transcribe them to `sessions.csv`, UTF-8, a row for each turn, with the columns

========= ==================================================================================================
session   name of the session
patient   pseudonym of the patient, the same in all of a patient's sessions
turn      number of the turn in its session; numbers may be skipped
role      psychologist or patient
text      what was said
focus     what the session is about, such as tobacco or alcohol; the same in the whole session
act       optional. psychologist: question, reflection, therapist_input, other; patient: change, neutral, sustain
quality   optional. high or low, as trained raters judge the session; the same in the whole session
========= ==================================================================================================

Optional columns may be missing, and their fields empty; any other column is an error, since it may be a misspelt one.
The patient is the user, the psychologist the assistant, the label the focus. The acts are AnnoMI's, so that its
classifiers can be used.

`split_groups` splits the patients, so that no patient is in two splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attune.corpora.readers.annomi import BEHAVIOURS, QUALITIES, TALK_TYPES
from attune.corpora.readers.csv_rows import (
    Row,
    differing,
    empty,
    first_problem,
    grouped,
    number,
    one_of,
    read_rows,
    refuse,
)
from attune.corpora.splits import split_groups
from attune.data.dialogue import Dialogue, Role, Turn, join_turns

CORPUS = "ufjf"
FILE = "sessions.csv"
ROLES: dict[str, Role] = {"psychologist": "assistant", "patient": "user"}
ACTS = {"psychologist": BEHAVIOURS, "patient": TALK_TYPES}
COLUMNS = ["session", "patient", "turn", "role", "text", "focus"]
OPTIONAL = ["act", "quality"]
SESSION = ["patient", "focus", "quality"]


def read(folder: Path, file: str = FILE) -> tuple[list[Dialogue], Counter[str]]:
    """Read the sessions.

    Returns:
        The sessions in file order, and an empty counter, since this reader drops nothing.

    Raises:
        DataError: the file is missing, is no UTF-8 or no csv, has another column, or rows do not fit; each is named
            by its line.
    """
    path = folder / file
    sessions = grouped(path, read_rows(path, COLUMNS, _problem, optional=OPTIONAL), "session")
    refuse(path, [problem for rows in sessions.values() for problem in _session_problems(rows)])
    splits = split_groups({rows[0].fields["patient"]: CORPUS for rows in sessions.values()})
    dialogues = []
    for name, rows in sessions.items():
        first = rows[0].fields
        split = splits[first["patient"]]
        ordered = sorted(rows, key=lambda row: int(row.fields["turn"]))
        turns = join_turns(
            Turn(ROLES[row.fields["role"]], row.fields["text"], row.fields.get("act") or None) for row in ordered
        )
        quality = first.get("quality") or None
        dialogues.append(Dialogue(f"{split}/{name}", CORPUS, split, first["focus"], turns, quality))
    return dialogues, Counter()


def _session_problems(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """The problems between the rows of a session."""
    lines: dict[int, int] = {}
    problems = differing(rows, SESSION)
    for row in rows:
        turn = int(row.fields["turn"])
        if turn in lines:
            problems.append((row.line, f"turn {turn} is also in line {lines[turn]}"))
        lines.setdefault(turn, row.line)
    return sorted(problems)


def _problem(fields: dict[str, str]) -> str | None:
    """The problem of a row, or None."""
    return first_problem(
        empty(fields, ["session", "patient", "text", "focus"]),
        number(fields, "turn"),
        one_of(fields, "role", tuple(ROLES)),
        one_of(fields, "quality", QUALITIES) if fields.get("quality") else None,
    ) or (one_of(fields, "act", ACTS[fields["role"]]) if fields.get("act") else None)
