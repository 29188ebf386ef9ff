"""Arrow tables in files: read in batches, written atomically, spilled to disk if they do not fit into memory."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import writing
from attune.runtime.io import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

# Rows of a row group of a parquet file.
GROUP = 65_536
# Rows that are processed at a time.
ROWS = 16_384


def read_batches(path: Path, rows: int = ROWS, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a parquet file in order, `rows` at a time, fewer at the end of a row group; no table is empty.

    Args:
        path: of the file.
        rows: at a time.
        columns: to read, those of structs in a list as `turns.list.element.text`; None: all.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # With pre_buffer, a reader keeps the bytes of all row groups that it has passed.
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                if len(batch):
                    yield pa.Table.from_batches([batch])


def prefetch(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables; a thread prepares the next two while the caller works."""
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, tables, None) for _ in range(2))
        while (table := waiting.popleft().result()) is not None:
            waiting.append(reader.submit(next, tables, None))
            yield table


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow table to `path` as parquet, atomically.

    Raises:
        StorageError: as `writing`.
    """
    with table_writer(path, table.schema, table.nbytes) as append:
        append(table)


@contextmanager
def table_writer(path: Path, schema: pa.Schema, need: int | None = None) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends rows to a parquet file, which is renamed to `path` at the end of the block.

    The bytes of the file do not depend on how its rows are split into tables.

    Args:
        path: of the file.
        schema: of every table.
        need: bytes of the file, if known; for the error on a full disk.

    Raises:
        StorageError: as `writing`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        whole_file(path, need) as temporary,
        pq.ParquetWriter(temporary, schema) as writer,
        ThreadPoolExecutor(1) as encoder,
    ):
        waiting = schema.empty_table()
        # At most one row group is being encoded, while the caller prepares the next.
        encoding: list[Future[None]] = []

        def write(group: pa.Table) -> None:
            for future in encoding:
                future.result()
            # A parquet page ends where a chunk ends, so a row group must be one chunk.
            encoding[:] = [encoder.submit(writer.write_table, group.combine_chunks())]

        def append(table: pa.Table) -> None:
            nonlocal waiting
            waiting = pa.concat_tables([waiting, table])
            while len(waiting) >= GROUP:
                write(waiting.slice(0, GROUP))
                waiting = waiting.slice(GROUP)

        yield append
        if len(waiting) or not encoding:
            write(waiting)
        for future in encoding:
            future.result()


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A scratch directory, empty at the start and removed at the end, even if a killed run has left files in it.

    Raises:
        StorageError: as `writing`.
    """
    with writing(path, None):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def spill(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables to an Arrow stream, a batch each; no tables: no file."""
    import pyarrow as pa

    following = iter(tables)
    first = next(following, None)
    if first is not None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            for table in chain([first], following):
                writer.write_table(table)


def spilled(path: Path) -> Iterator[pa.Table]:
    """The batches of `spill` in order. The file is read, not memory-mapped, so that batches leave memory again."""
    import pyarrow as pa

    if path.exists():
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])


@contextmanager
def in_processes(count: int | None) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` over `count` processes (None: one per core) with results in order; the built-in `map` if it is 1.

    Functions and arguments must be picklable. Workers end with this process, even if it is killed. They start, and load
    Arrow and pandas, in the background.
    """
    workers = os.cpu_count() or 1 if count is None else count
    if workers == 1:
        yield map
        return
    # Spawned: a forked worker would inherit Arrow's locks without the threads that release them.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        # The first task starts the workers.
        pool.submit(int)
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Exit when the parent is killed, since a worker would wait for it forever; preload slow imports."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    for name in ("pandas", "pyarrow.compute"):
        import_module(name)
