"""The table of opposite labels (EmPO Table 2, or one of your own), and which labels it must cover."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from attune.runtime.errors import DataError
from attune.runtime.io import read_records


def check_coverage(labels: Collection[str], opposites: Mapping[str, str], groups: Collection[str]) -> None:
    """Check that every label has an opposite, and every opposite has replies to draw from.

    Args:
        labels: of the examples that get pairs.
        opposites: label to opposite label.
        groups: the labels that have replies.

    Raises:
        DataError: naming the labels without.
    """
    if unknown := sorted(set(labels) - set(opposites)):
        raise DataError(f"no opposite in the table for the labels {', '.join(unknown)}: add a row for each")
    if empty := sorted(label for label in labels if opposites[label] not in groups):
        wanted = ", ".join(f"{label} -> {opposites[label]}" for label in empty)
        raise DataError(f"no dialogue carries the opposite label, so nothing can be drawn: {wanted}")


def read_opposites(path: Path) -> dict[str, str]:
    """Read a table with the columns emotion and opposite.

    Raises:
        DataError: the file or a column is missing, or a label is empty, its own opposite, or repeated.
    """
    table = read_records(path, ("emotion", "opposite"), DataError, "pairs.table names the table of opposite labels")
    opposites: dict[str, str] = {}
    for line, row in table:
        emotion, opposite = row["emotion"].strip(), row["opposite"].strip()
        if not emotion or not opposite or emotion == opposite or emotion in opposites:
            raise DataError(f"{path}:{line}: emotion {emotion!r}, opposite {opposite!r}: empty, equal or repeated")
        opposites[emotion] = opposite
    return opposites
