"""Writing a file whole or not at all, and reading one that people or other programs wrote: whole or an error.

What is read is UTF-8. A byte order mark and the kind of line ends say nothing and are passed over; another encoding, a
character NUL and a broken quote are errors, since what is read past them would be other text than was written. Each
error is the caller's kind of `UserError` and names the file and, where there is one, the line.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from attune.runtime.errors import UserError, writing

if TYPE_CHECKING:
    import pyarrow as pa

# Bytes of a file whose lines are read one by one.
BLOCK = 1 << 22


def read_text(path: Path, error: type[UserError], missing: str) -> str:
    """The text of a file, its line ends as they are.

    Args:
        path: of the file.
        error: what is raised.
        missing: what to do where there is no such file.

    Raises:
        UserError: `error`, where there is no such file, it cannot be read, is no UTF-8, or holds a NUL.
    """
    with _opened(path, error, missing) as file:
        return _decoded(file.read(), path, error).removeprefix("\ufeff")


def read_lines(path: Path, error: type[UserError], missing: str) -> Iterator[str]:
    """The lines of a file without their ends, one by one; arguments and errors as those of `read_text`.

    No more than `BLOCK` bytes and a line are in memory. An error comes before the lines of its block.
    """
    rest, start, line, more = b"", 0, 1, True
    with _opened(path, error, missing) as file:
        while more:
            more = bool(chunk := file.read(BLOCK))
            block = rest + chunk
            # Behind the last end of a line; what follows a \r at the end of the block may be its \n.
            end = max(block.rfind(b"\n"), block.rfind(b"\r", 0, -1)) + 1 if more else len(block)
            text = _decoded(block[:end], path, error, start, line)
            text = (text if start else text.removeprefix("\ufeff")).replace("\r\n", "\n").replace("\r", "\n")
            found = text.split("\n")
            # What stands behind the last end is a line, though empty, at the end of the file alone.
            yield from found[:-1] if more else found
            rest, start, line = block[end:], start + end, line + len(found) - 1


@contextmanager
def _opened(path: Path, error: type[UserError], missing: str) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise error(f"{path} is missing: {missing}") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}: it should be a file") from None


def _decoded(content: bytes, path: Path, error: type[UserError], start: int = 0, line: int = 1) -> str:
    """The text of a part of a file, which begins with the byte `start` and the line `line`."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as problem:
        where = f"{path}:{line - 1 + _line(content, problem.start)}"
        raise error(f"{where}: not UTF-8 at byte {start + problem.start}: save it as UTF-8") from None
    if (at := content.find(b"\0")) >= 0:
        where = f"{path}:{line - 1 + _line(content, at)}"
        raise error(f"{where}: a NUL at byte {start + at}: no text, or UTF-16 or -32: save it as UTF-8")
    return text


def read_csv(path: Path, error: type[UserError], missing: str) -> list[tuple[int, list[str]]]:
    """The rows of a csv file, each with the line that it begins on; blank ones are left out.

    Quotes are read strictly: of one that is left open the rest of the file would be a single field.

    Raises:
        UserError: as `read_text`, and where the file is no csv.
    """
    # With newline="": line ends inside of quotes stay as they are.
    reader = csv.reader(io.StringIO(read_text(path, error, missing), newline=""), strict=True)
    rows, line = [], 1
    try:
        for values in reader:
            if any(value.strip() for value in values):
                rows.append((line, values))
            line = reader.line_num + 1
    except csv.Error as problem:
        raise error(f"{path}:{line}: no valid csv: {problem}") from None
    return rows


def read_header(
    path: Path, rows: Sequence[tuple[int, list[str]]], columns: Sequence[str], error: type[UserError]
) -> list[str]:
    """The names of the columns, which the first row of `read_csv` has.

    Raises:
        UserError: `error`, where one of `columns` is not there, or is there twice.
    """
    line, values = rows[0] if rows else (1, [])
    header = [name.strip() for name in values]
    found = ", ".join(header)[:200] or "nothing"
    if lost := [name for name in columns if name not in header]:
        raise error(f"{path}:{line}: no column {', '.join(lost)}; found {found}")
    if twice := [name for name in columns if header.count(name) > 1]:
        raise error(f"{path}:{line}: column {', '.join(twice)} is there twice: {found}")
    return header


def read_records(
    path: Path, columns: Sequence[str], error: type[UserError], missing: str
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a csv file with a header, each with the line that it begins on; its other columns are kept.

    Raises:
        UserError: as `read_csv` and `read_header`, and where a row has more or fewer fields than the header.
    """
    rows = read_csv(path, error, missing)
    header = read_header(path, rows, columns, error)
    for line, values in rows[1:]:
        if len(values) != len(header):
            raise error(f"{path}:{line}: {len(values)} columns, expected {len(header)}: {values[0][:40]!r}")
    return [(line, dict(zip(header, values, strict=True))) for line, values in rows[1:]]


def read_yaml(path: Path, error: type[UserError], missing: str) -> Any:
    """The content of a YAML file, as JSON has it: a date is the text that it was.

    Raises:
        UserError: as `read_text`, and where the file is no YAML, or holds what JSON has no form for.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = read_text(path, error, missing)
    try:
        return json.loads(json.dumps(YAML(typ="safe").load(text), default=str))
    # A date that there is not, a number of too many digits, a list that holds itself, a key that is a list.
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as problem:
        raise error(f"{path} is no valid YAML: {problem}") from None


def sha256_of(path: Path) -> str:
    """The hash of a file, as 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(content: bytes, at: int) -> int:
    """The line, from 1, that a byte is in."""
    return len((content[:at] + b"x").splitlines())


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


def canonicalize_model_files(folder: Path) -> None:
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
