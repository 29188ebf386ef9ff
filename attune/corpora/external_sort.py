"""Dialogues in order of their ids, however many: sorted runs on the disk, merged as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.runtime.arrow_stream import spill, spilled

if TYPE_CHECKING:
    import pyarrow as pa

# Bytes of a run, which is sorted in memory, and of what is read of each at a time.
RUN = 1 << 26
PIECE = 1 << 18


class Runs:
    """Rows with a column `id` that are put down in any order and come back in order of it.

    Args:
        folder: for the runs; it is made.
        run: bytes of one.
    """

    def __init__(self, folder: Path, run: int = RUN) -> None:
        folder.mkdir()
        self._folder, self._run = folder, run
        self._files: list[Path] = []
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Put rows down."""
        self._waiting.append(table)
        if sum(one.nbytes for one in self._waiting) >= self._run:
            self._write()

    def in_any_order(self) -> Iterator[pa.Table]:
        """All rows."""
        self._write()
        for file in self._files:
            yield from spilled(file)

    def in_order(self) -> Iterator[pa.Table]:
        """All rows in order of their ids; of equal ids in the order in which they came, where they fit into a run."""
        self._write()
        yield from merged([spilled(file) for file in self._files])

    def _write(self) -> None:
        import pyarrow as pa

        table = pa.concat_tables(self._waiting) if self._waiting else None
        if table is not None and len(table):
            self._files.append(self._folder / str(len(self._files)))
            rows = max(1, len(table) * PIECE // table.nbytes)
            table = in_order(table).combine_chunks()
            spill(self._files[-1], (table.slice(start, rows) for start in range(0, len(table), rows)))
        self._waiting = []


def merged(runs: Sequence[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """The rows of sorted runs in order of their ids; of each no more than two pieces are in memory."""
    import pyarrow as pa
    import pyarrow.compute as pc

    left: list[Iterator[pa.Table] | None] = list(runs)
    held = [next(run) for run in runs]
    sizes = [len(table) for table in held]
    while held:
        for i, run in enumerate(left):
            # Read on before a piece has ended, so that a step passes most of a piece of each run, and not of one alone.
            if run is not None and len(held[i]) <= sizes[i]:
                following = next(run, None)
                left[i] = None if following is None else run
                held[i] = held[i] if following is None else pa.concat_tables([held[i], following])
        last = min((held[i]["id"][-1].as_py() for i, run in enumerate(left) if run is not None), default=None)
        passed = [
            len(table) if last is None else pc.sum(pc.less_equal(table["id"], last)).as_py() or 0 for table in held
        ]
        ready = pa.concat_tables([table.slice(0, count) for table, count in zip(held, passed, strict=True)])
        yield ready if len(runs) == 1 else in_order(ready)
        held = [] if last is None else [table.slice(count) for table, count in zip(held, passed, strict=True)]


def in_order(table: pa.Table) -> pa.Table:
    """The rows in order of their ids; equal ones stay in theirs."""
    import pyarrow.compute as pc

    return table.take(pc.sort_indices(table["id"]))
