"""Writing a file whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import writing

if TYPE_CHECKING:
    import pyarrow as pa


def write_text(path: Path, text: str) -> None:
    r"""Write `text` to `path` as UTF-8 with `\n` line ends, as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, making its folder where it is missing.

    A reader sees the old file or the new one, never a part: the text goes to a temporary file in the same folder,
    which then takes the name. A symbolic link at `path` is replaced, what it points to (a cache, say) is left alone.

    Raises:
        StorageError: the disk is full, or may not be written to.
        OSError: the folder cannot be made or written to for another reason.
    """
    with whole_file(path, len(content)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole_file(path: Path, need: int | None = None) -> Iterator[Path]:
    """A temporary file for the block to write, which then takes the name `path`, or is removed where the block fails.

    Args:
        path: of the file, whose folder is made where it is missing.
        need: its bytes, if known.

    Raises:
        StorageError: as `writing`.
    """
    # Opened as an ordinary file, so that the umask decides its mode (tempfile would make it private).
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, need):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, need: int | None = None) -> Iterator[Path]:
    """As `whole_file` of a folder, which the block makes."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path, need):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            shutil.rmtree(path, ignore_errors=True)
            partial.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow table to `path` as parquet, as `write_bytes`."""
    import pyarrow.parquet as pq

    with whole_file(path, table.nbytes) as temporary:
        pq.write_table(table, temporary)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write `values` to `path` as indented JSON in their own order, with a newline at the end, by `write_text`.

    Raises:
        ValueError: a value is NaN or infinite, which JSON does not have; names `path`, which is left as it was.
        TypeError: a value is none that JSON knows; `path` is left as it was.
        OSError: as `write_text`.
    """
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    write_text(path, text + "\n")


def settle_model_files(folder: Path) -> None:
    """Rewrite what libraries store of a model so that equal runs give equal bytes, in `folder` and the folders in it.

    PEFT 0.21 writes `target_modules`, a set, in an order that changes from process to process: it is sorted.
    transformers 5.23 stores `local_files_only` with a tokenizer, which is how it was loaded: it is left out.
    """
    for path in sorted(folder.rglob("adapter_config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config.get("target_modules"), list):
            write_json(path, {**config, "target_modules": sorted(config["target_modules"])})
    for path in sorted(folder.rglob("tokenizer_config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("local_files_only", None) is not None:
            write_json(path, config)
