"""Tables that need not fit into memory: read a batch of rows at a time, and written whole or not at all."""

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

# Rows of a group in a parquet file: a table of no more has the bytes that `files.write_table` gives it.
GROUP = 65_536
# Rows that are in hand at a time.
ROWS = 16_384


def read_batches(path: Path, rows: int = ROWS, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a parquet file in their order, `rows` at a time, fewer at the end of a group; none: no table.

    Args:
        path: of the file.
        rows: at a time.
        columns: that are read, those of a list's structs as `turns.list.element.text`; None: all.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # With pre_buffer a reader keeps the bytes of all groups that it has passed.
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                if len(batch):
                    yield pa.Table.from_batches([batch])


def prefetch(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, the next two of which are made in a thread while the caller works."""
    with ThreadPoolExecutor(1) as making:
        waiting = deque(making.submit(next, tables, None) for _ in range(2))
        while (table := waiting.popleft().result()) is not None:
            waiting.append(making.submit(next, tables, None))
            yield table


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends rows to a parquet file, which takes the name `path` at the end of the block.

    How its rows were cut into tables does not move a byte of the file.

    Raises:
        StorageError: as `writing`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        whole_file(path) as temporary,
        pq.ParquetWriter(temporary, schema) as writer,
        ThreadPoolExecutor(1) as encoding,
    ):
        waiting = schema.empty_table()
        groups: list[Future[None]] = []

        def write(table: pa.Table) -> None:
            # Encoded while the caller makes the next one; a chunk ends a page: one chunk a group.
            for one in groups:
                one.result()
            groups[:] = [encoding.submit(writer.write_table, table.combine_chunks())]

        def append(table: pa.Table) -> None:
            nonlocal waiting
            waiting = pa.concat_tables([waiting, table])
            while len(waiting) >= GROUP:
                write(waiting.slice(0, GROUP))
                waiting = waiting.slice(GROUP)

        yield append
        if len(waiting) or not groups:
            write(waiting)
        for one in groups:
            one.result()


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A folder for what does not fit into memory, empty at first and gone at the end; a killed run's is cleared.

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
    """Write tables as Arrow batches, which are read one by one; none: no file."""
    import pyarrow as pa

    following = iter(tables)
    first = next(following, None)
    if first is not None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            for table in chain([first], following):
                writer.write_table(table)


def spilled(path: Path) -> Iterator[pa.Table]:
    """The batches of `spill`, in their order; read and not mapped, so that those passed leave memory."""
    import pyarrow as pa

    if path.exists():
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])


@contextmanager
def in_processes(count: int | None) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` that works in `count` processes (None: one a core) and gives results in order; in this one where it is 1.

    Functions and their arguments must be picklable. A worker ends with this process, however that ends. It starts, and
    loads Arrow and pandas, while this process goes on.
    """
    workers = os.cpu_count() or 1 if count is None else count
    if workers == 1:
        yield map
        return
    # Forked, a worker would have Arrow's locks without the threads that open them.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin)
    try:
        # Workers start with the first call.
        pool.submit(int)
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a worker: end when the parent is killed, for which it would wait for ever, and load what takes long."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    for name in ("pandas", "pyarrow.compute"):
        import_module(name)
