"""Which acts of the MITI code adhere to motivational interviewing: a table (`data/miti_adherence.csv`)."""

from __future__ import annotations

from pathlib import Path

from attune.labels.turn_labels import read_table

ADHERENCE: tuple[str, ...] = ("adherent", "non-adherent", "neither")
COLUMNS = ("act", "adherence")


def read_adherence(path: Path, key: str = "behaviour.table") -> dict[str, str]:
    """The table of adherence: act to one of `ADHERENCE`; an empty label is neither.

    Args:
        path: csv.
        key: the parameter that names it, for errors.

    Raises:
        DataError: as `read_table`.
    """
    return read_table(path, key, COLUMNS, ADHERENCE)
