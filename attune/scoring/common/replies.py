"""Reading replies, and the labels of the human replies that they are compared to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from attune.runtime.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "label", "context", "reference", "reply", "rejected", "reference_logp", "rejected_logp")


def read(path: Path) -> pd.DataFrame:
    """Read and check a file of replies.

    Raises:
        DataError: the file is missing or no parquet, a column is missing, there are no rows, or a value is null or
            of another type than its column; names the file, the column and the row.
    """
    import pandas as pd
    from pyarrow import ArrowInvalid

    try:
        replies = pd.read_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro generate@{path.stem}`") from None
    except ArrowInvalid as error:
        raise DataError(f"{path} is no valid parquet file: {error}") from None
    # Only the first problem: after a missing column the later checks would fail.
    problem = next(_problems(replies), None)
    if problem is not None:
        raise DataError(f"{path}: {problem}")
    return replies


def _problems(replies: pd.DataFrame) -> Iterator[str]:
    """The problems of `replies`, one sentence each."""
    for column in COLUMNS:
        if column not in replies:
            yield f"column {column} is missing"
    if not len(replies):
        yield "there are no rows"
    paired = replies[replies["rejected"].notna()]
    for column in ("reply", "reference"):
        yield from _invalid_rows(replies, column, is_text, "a text")
    yield from _invalid_rows(paired, "rejected", is_text, "a text")
    for column in ("reference_logp", "rejected_logp"):
        yield from _invalid_rows(paired, column, _is_finite, "a finite number")


def _invalid_rows(
    replies: pd.DataFrame, column: str, is_valid: Callable[[object], bool], expected: str
) -> Iterator[str]:
    for row, name, value in zip(replies.index, replies["id"], replies[column].tolist(), strict=True):
        if not is_valid(value):
            yield f"column {column}, row {row} (id {name}): {value!r} is not {expected}"


def is_text(value: object) -> bool:
    """Whether a value of a column is a text, not null."""
    return isinstance(value, str)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def read_references(path: Path, replies: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The rows of `label_references` of a classifier, in the order of `replies`.

    Args:
        path: parquet, with a column `id`.
        replies: rows with a column `id`.
        stage: the one that writes `path`, for errors.

    Raises:
        DataError: the file is missing or no parquet, or lacks an example of `replies`.
    """
    import pandas as pd
    from pyarrow import ArrowInvalid

    try:
        references = pd.read_parquet(path).set_index("id")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro {stage}`") from None
    except ArrowInvalid as error:
        raise DataError(f"{path} is no valid parquet file ({error}): run `dvc repro -f -s {stage}`") from None
    missing = [name for name in replies["id"] if name not in references.index]
    if missing:
        raise DataError(f"{path} lacks {len(missing)} examples, first {missing[0]}: run `dvc repro {stage}`")
    return references.loc[replies["id"].tolist()]


def engine(path: Path) -> dict[str, str]:
    """Name and version of the engine that generated the replies in `path`; empty for the built-in engine."""
    import pyarrow.parquet as pq

    name = (pq.read_schema(path).metadata or {}).get(b"engine")
    return {"engine": name.decode()} if name else {}
