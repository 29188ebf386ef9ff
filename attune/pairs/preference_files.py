"""The rows of a file of preference pairs, or of a dataset of the Hugging Face hub, with their places for errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.config.schema import PAIR_FILES
from attune.runtime.errors import DataError
from attune.runtime.hub import load_splits
from attune.runtime.records import Record, read_rows

if TYPE_CHECKING:
    from attune.config.schema import PairFile, Pairs

MISSING = "pairs.table names the preference pairs of pairs.rule = file"


def read_parts(settings: Pairs) -> tuple[Iterator[Record], Iterator[Record] | None]:
    """The rows to train on, and those of a held-out part; None if there is no such part.

    Args:
        settings: section `pairs`, whose `table` is a file, or a folder with a file train and perhaps a file test;
            `file.hub_id` names a dataset of the hub instead.

    Raises:
        DataError: there is no such file, folder, dataset or part, or it cannot be read.
    """
    if settings.file.hub_id is not None:
        return hub_parts(settings.file.hub_id, settings.file)
    path = Path(settings.table)
    if not path.is_dir():
        return _rows(path), None
    train, test = (of_part(path, part) for part in ("train", "test"))
    if train is None:
        raise DataError(f"{path} holds no train.jsonl, train.json or train.parquet: {MISSING}")
    return _rows(train), None if test is None else _rows(test)


def _rows(path: Path) -> Iterator[Record]:
    return read_rows(path, PAIR_FILES, DataError, MISSING)


def of_part(folder: Path, part: str) -> Path | None:
    """The file of a part, by its name without the ending.

    Raises:
        DataError: there are several.
    """
    found = [path for ending in PAIR_FILES if (path := folder / f"{part}{ending}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds {' and '.join(path.name for path in found)}: keep one of them")
    return found[0] if found else None


def hub_parts(hub_id: str, settings: PairFile) -> tuple[Iterator[Record], Iterator[Record] | None]:
    """As `read_parts`, of a dataset of the hub; its splits are the parts."""
    of_hub = (hub_id, settings.subset, str(settings.revision))
    _, splits = load_splits(*of_hub, "pairs.file", (settings.train,), DataError)
    rows = {name: _hub_rows(split, f"{hub_id}, split {name}") for name, split in splits.items()}
    return rows[settings.train], rows.get(settings.test)


def _hub_rows(split: Any, name: str) -> Iterator[Record]:
    for number, row in enumerate(split, start=1):
        yield f"{name}, row {number}", row
