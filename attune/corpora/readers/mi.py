"""Peer support and counselling with labels of the MITI code (CC BY-NC-SA 3.0) to `Dialogue` records.

The MI dataset of Welivita and Pu (COLING 2022), `MI Dataset.csv`, and the files of their later release (Findings of
ACL 2023), such as CounselChat with weak labels, have a row for each sentence: the dialogue, the number of the turn, its
author (speaker or listener), the text and the label. The names of these columns differ and are parameters.

The speaker is the user, the listener the assistant. A turn's sentences are joined; its act is the most frequent label
of its sentences, and in a tie the last one. A sentence may have no label (empty or "-"). The label of a dialogue is its
source: the part of its id before "|" (`counsel_chat | 3`), or the name of the corpus. There are no ratings of quality.

The corpus has no split. `split_groups` splits the posts (the speaker's first turn): a post has up to 55 answers, each a
dialogue, and all of them are in one split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from attune.config.schema import Columns
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
from attune.data.dialogue import Dialogue, Role, Turn, join_turns, normalise

CORPUS = "mi"
FILE = "MI Dataset.csv"
COLUMNS = {"dialogue": "dialog_id", "turn": "turn", "role": "author", "text": "text", "act": "final agreed label"}
PUBLISHED = Columns(**COLUMNS)
ROLES: dict[str, Role] = {"speaker": "user", "listener": "assistant"}
LABELS = (
    "Closed Question",
    "Open Question",
    "Simple Reflection",
    "Complex Reflection",
    "Give Information",
    "Advise with Permission",
    "Affirm",
    "Emphasize Autonomy",
    "Support",
    "Advise without Permission",
    "Confront",
    "Direct",
    "Warn",
    "Self-Disclose",
    "Other",
)
UNLABELLED = ("", "-")


def read(folder: Path, file: str = FILE, columns: Columns = PUBLISHED) -> tuple[list[Dialogue], Counter[str]]:
    """Read one file of sentences.

    Returns:
        The dialogues in file order, and the number of empty sentences that were dropped, `<split>_empty_sentence`.

    Raises:
        DataError: the file is missing, is no UTF-8 or no csv, or rows do not fit; each is named by its line.
    """
    path = folder / file
    named = [columns.dialogue, columns.turn, columns.role, columns.text, columns.act]
    rows_of = grouped(path, read_rows(path, named, partial(_problem, columns=columns)), columns.dialogue)
    turns_of = {name: _turns(path, rows, columns) for name, rows in rows_of.items()}
    groups = {name: normalise(turns[0].text) for name, turns in turns_of.items() if turns}
    splits = split_groups(dict.fromkeys(groups.values(), CORPUS))
    dialogues, dropped = [], Counter[str]()
    for name, group in groups.items():
        split = splits[group]
        source = name.split("|")[0].strip() if "|" in name else CORPUS
        dialogues.append(Dialogue(f"{split}/{name}", CORPUS, split, source, turns_of[name]))
        if lost := sum(not row.fields[columns.text] for row in rows_of[name]):
            dropped[f"{split}_empty_sentence"] += lost
    return dialogues, dropped


def act_of(labels: Sequence[str]) -> str | None:
    """The act of a turn from the labels of its sentences in order: the most frequent one, in a tie the last."""
    given = [label for label in labels if label not in UNLABELLED]
    counts = Counter(reversed(given)).most_common(1)
    return counts[0][0] if counts else None


def _turns(path: Path, rows: Sequence[Row], columns: Columns) -> tuple[Turn, ...]:
    """The joined turns of a dialogue, by their numbers."""
    numbered: dict[int, list[Row]] = {}
    for row in rows:
        numbered.setdefault(int(row.fields[columns.turn]), []).append(row)
    turns = []
    for _, some in sorted(numbered.items()):
        refuse(path, differing(some, [columns.role]))
        role = ROLES[some[0].fields[columns.role]]
        text = " ".join(row.fields[columns.text] for row in some if row.fields[columns.text])
        act = act_of([row.fields[columns.act] for row in some if row.fields[columns.text]])
        if text:
            turns.append(Turn(role, text, act if role == "assistant" else None))
    return join_turns(turns)


def _problem(fields: dict[str, str], columns: Columns) -> str | None:
    """The problem of a row, or None."""
    return first_problem(
        empty(fields, [columns.dialogue]),
        number(fields, columns.turn),
        one_of(fields, columns.role, tuple(ROLES)),
        None if fields[columns.act] in UNLABELLED else one_of(fields, columns.act, LABELS),
    )
