"""From the acts of a corpus to the labels that a classifier of assistant turns learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.data.dialogue import SPLITS, Dialogue, Turn
from attune.data.examples import examples
from attune.runtime.errors import DataError
from attune.runtime.io import read_records

SOURCE = "source"
"""The last column of every table of acts: where the label is from."""


@dataclass(frozen=True)
class LabelledTurn:
    """An assistant turn, the turns before it, and the index of its label."""

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
        labels: that exist; an empty label is the last.

    Raises:
        DataError: the file or a column is missing, a label is not in `labels`, or an act has two rows.
    """
    act_column, label_column = columns
    rows = read_records(path, columns, DataError, f"{key} names the table")
    if not rows:
        raise DataError(f"{path} has no rows: expected the columns {', '.join((*columns, SOURCE))}")
    label_of: dict[str, str] = {}
    for line, row in rows:
        act, label = row[act_column].strip(), row[label_column].strip() or labels[-1]
        if not act:
            raise DataError(f"{path}:{line}: empty {act_column}")
        if act in label_of:
            raise DataError(f"{path}:{line}: {act_column} {act!r} has two rows")
        if label not in labels:
            raise DataError(f"{path}:{line}: {label_column} {label!r} is none of {', '.join(labels)}, and not empty")
        label_of[act] = label
    return label_of


def label_turns(
    dialogues: Sequence[Dialogue], table: Mapping[str, str], labels: Sequence[str], context_turns: int, key: str
) -> tuple[Labelled, int]:
    """The assistant turns that have an act, with its label, by split; and the number of those without.

    Args:
        dialogues: of all splits.
        table: act to one of `labels`.
        labels: in the order of their indices.
        context_turns: number of turns of context.
        key: the parameter that names the table, for errors.

    Raises:
        DataError: an act is not in the table, no turn of the train split has an act, or all have the same label.
    """
    labelled: Labelled = {split: [] for split in SPLITS}
    without, unknown = 0, Counter[str]()
    for split, turns in labelled.items():
        for example in examples([d for d in dialogues if d.split == split], "every", context_turns):
            if example.act is None:
                without += 1
            elif example.act not in table:
                unknown[example.act] += 1
            else:
                turns.append(LabelledTurn(example.context, example.target, labels.index(table[example.act])))
    require_known(unknown, key)
    require_two(labelled, key)
    return labelled, without


def require_known(unknown: Counter[str], key: str) -> None:
    """Check that the table that `key` names has every act of the corpus.

    Raises:
        DataError: naming the unknown acts, with their counts.
    """
    if unknown:
        names = ", ".join(f"{name!r} ({count})" for name, count in unknown.most_common(5))
        raise DataError(f"{key} has no row for {len(unknown)} acts of the corpus: {names}: add a row for each")


def require_two(labelled: Labelled, key: str) -> None:
    """Check that a classifier has labels to learn.

    Raises:
        DataError: the train split has fewer than two.
    """
    if len({turn.label for turn in labelled["train"]}) < 2:
        raise DataError(f"the train split has turns of fewer than two labels: {key} and the corpus must fit")
