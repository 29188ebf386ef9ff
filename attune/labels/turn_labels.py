"""From the acts of a corpus to the labels that a classifier of assistant turns learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.data.dialogue import SPLITS, Dialogue, Turn, examples
from attune.runtime.errors import DataError
from attune.runtime.io import read_records

SOURCE = "source"
"""The last column of every table of acts: who says so."""


@dataclass(frozen=True)
class LabelledTurn:
    """An assistant turn after the turns before it, and the index of its label."""

    context: tuple[Turn, ...]
    reply: str
    label: int


Labelled = dict[str, list[LabelledTurn]]
"""The labelled turns of each split."""


def read_table(path: Path, key: str, columns: tuple[str, str], labels: Sequence[str]) -> dict[str, str]:
    """A table from the acts of a corpus to labels.

    Args:
        path: csv.
        key: the parameter that names it, for errors.
        columns: the names of the act's column and of the label's.
        labels: those that there are; an empty label is the last.

    Raises:
        DataError: it is missing or no csv with the columns, names a label that there is not, or an act twice.
    """
    act_column, label_column = columns
    rows = read_records(path, columns, DataError, f"{key} names the table")
    if not rows:
        raise DataError(f"{path} has no rows: expected the columns {', '.join((*columns, SOURCE))}")
    found: dict[str, str] = {}
    for line, row in rows:
        act, label = row[act_column].strip(), row[label_column].strip() or labels[-1]
        if not act:
            raise DataError(f"{path}:{line}: empty {act_column}")
        if act in found:
            raise DataError(f"{path}:{line}: {act_column} {act!r} has two rows")
        if label not in labels:
            raise DataError(f"{path}:{line}: {label_column} {label!r} is none of {', '.join(labels)}, and not empty")
        found[act] = label
    return found


def label_turns(
    dialogues: Sequence[Dialogue], table: Mapping[str, str], labels: Sequence[str], context_turns: int, key: str
) -> tuple[Labelled, int]:
    """Every assistant turn that has an act, with its label, by split; and how many have none.

    Args:
        dialogues: of all splits.
        table: act to one of `labels`.
        labels: in the order of their indices.
        context_turns: turns before the reply that are kept.
        key: what the table is called in errors.

    Raises:
        DataError: an act is not in the table, no turn of the train split has an act, or all have the same label.
    """
    found: Labelled = {split: [] for split in SPLITS}
    without, unknown = 0, Counter[str]()
    for dialogue in dialogues:
        for one in examples(dialogue, "every", context_turns):
            if one.act is None:
                without += 1
            elif one.act not in table:
                unknown[one.act] += 1
            else:
                turn = LabelledTurn(one.context, one.target, labels.index(table[one.act]))
                found[dialogue.split].append(turn)
    require_known(unknown, key)
    require_two(found, key)
    return found, without


def require_known(unknown: Counter[str], key: str) -> None:
    """No act of a corpus is missing in the table that `key` names.

    Raises:
        DataError: naming the acts that are, with their counts.
    """
    if unknown:
        names = ", ".join(f"{name!r} ({count})" for name, count in unknown.most_common(5))
        raise DataError(f"{key} has no row for {len(unknown)} acts of the corpus: {names}: add a row for each")


def require_two(labelled: Labelled, key: str) -> None:
    """There are labels to tell apart.

    Raises:
        DataError: the train split has fewer than two.
    """
    if len({one.label for one in labelled["train"]}) < 2:
        raise DataError(f"the train split has turns of fewer than two labels: {key} and the corpus must fit")
