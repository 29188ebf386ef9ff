"""External merge sort of Arrow tables by their column `id`: sorted runs on disk, merged while they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.runtime.arrow_stream import spill, spilled

if TYPE_CHECKING:
    import pyarrow as pa

# Bytes of a run, which is sorted in memory, and of a piece, which is what is read of a run at a time.
RUN = 1 << 26
PIECE = 1 << 18


class Runs:
    """Rows that are added in any order and read back in order of their ids.

    Args:
        folder: for the runs; it is created.
        run: bytes of a run.
    """

    def __init__(self, folder: Path, run: int = RUN) -> None:
        folder.mkdir()
        self._folder, self._run = folder, run
        self._files: list[Path] = []
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        self._waiting.append(table)
        if sum(waiting.nbytes for waiting in self._waiting) >= self._run:
            self._write()

    def in_any_order(self) -> Iterator[pa.Table]:
        """All rows."""
        self._write()
        for file in self._files:
            yield from spilled(file)

    def in_order(self) -> Iterator[pa.Table]:
        """All rows in order of their ids; the sort is stable within a run."""
        self._write()
        yield from merged([spilled(file) for file in self._files])

    def _write(self) -> None:
        import pyarrow as pa

        table = pa.concat_tables(self._waiting) if self._waiting else None
        if table is not None and len(table):
            self._files.append(self._folder / str(len(self._files)))
            rows = max(1, len(table) * PIECE // table.nbytes)
            table = sort_by_id(table).combine_chunks()
            spill(self._files[-1], (table.slice(start, rows) for start in range(0, len(table), rows)))
        self._waiting = []


def merged(runs: Sequence[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """The rows of sorted runs in order of their ids; at most two pieces of each run are in memory.

    A step yields all rows up to the least of the pieces' last ids: no unread row of any run comes before it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    unread: list[Iterator[pa.Table] | None] = list(runs)
    held = [next(run) for run in runs]
    sizes = [len(table) for table in held]
    while held:
        for i, run in enumerate(unread):
            # Read on before a piece ends, so that a step consumes most of a piece of every run.
            if run is not None and len(held[i]) <= sizes[i]:
                piece = next(run, None)
                unread[i] = None if piece is None else run
                held[i] = held[i] if piece is None else pa.concat_tables([held[i], piece])
        last = min((held[i]["id"][-1].as_py() for i, run in enumerate(unread) if run is not None), default=None)
        counts = [
            len(table) if last is None else pc.sum(pc.less_equal(table["id"], last)).as_py() or 0 for table in held
        ]
        ready = pa.concat_tables([table.slice(0, count) for table, count in zip(held, counts, strict=True)])
        yield ready if len(runs) == 1 else sort_by_id(ready)
        held = [] if last is None else [table.slice(count) for table, count in zip(held, counts, strict=True)]


def sort_by_id(table: pa.Table) -> pa.Table:
    """The rows in order of their ids; the sort is stable."""
    import pyarrow.compute as pc

    return table.take(pc.sort_indices(table["id"]))
