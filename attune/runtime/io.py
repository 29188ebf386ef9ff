"""Atomic writes, and strict reading of files that people or other programs wrote.

Text is UTF-8. A byte order mark is ignored and line ends are normalized; another encoding, a NUL and an unclosed quote
are errors, since the text after them would be misread. Errors have the class that the caller names, a `UserError`, and
name the file and, if known, the line.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, BinaryIO

from attune.runtime.errors import DataError, UserError, writing

if TYPE_CHECKING:
    import pandas as pd

# Bytes that `read_lines` reads at a time.
BLOCK = 1 << 22


def read_text(path: Path, error: type[UserError], missing: str) -> str:
    """The text of a file, with its line ends unchanged.

    Args:
        path: of the file.
        error: the class to raise.
        missing: what to do if there is no such file.

    Raises:
        UserError: `error`, if the file is missing or unreadable, is not UTF-8, or holds a NUL.
    """
    with _opened(path, error, missing) as file:
        return _decoded(file.read(), path, error).removeprefix("\ufeff")


def read_gzip(path: Path, error: type[UserError], missing: str) -> str:
    """As `read_text`, of a gzip file.

    Raises:
        UserError: as `read_text`, and where the file is no whole gzip file.
    """
    with _opened(path, error, missing) as file:
        try:
            content = gzip.decompress(file.read())
        except (OSError, EOFError, zlib.error) as problem:
            raise error(f"{path} is no gzip file, or is cut off: {problem}") from None
    return _decoded(content, path, error).removeprefix("\ufeff")


def read_lines(path: Path, error: type[UserError], missing: str) -> Iterator[str]:
    """Iterate over the lines of a file without their line ends; arguments and errors as those of `read_text`.

    At most `BLOCK` bytes and a line are in memory. An error is raised before the lines of its block are yielded.
    """
    rest, start, line, more = b"", 0, 1, True
    with _opened(path, error, missing) as file:
        while more:
            more = bool(chunk := file.read(BLOCK))
            block = rest + chunk
            # After the last line end; a \r at the end of the block may be followed by its \n.
            end = max(block.rfind(b"\n"), block.rfind(b"\r", 0, -1)) + 1 if more else len(block)
            text = _decoded(block[:end], path, error, start, line)
            text = (text if start else text.removeprefix("\ufeff")).replace("\r\n", "\n").replace("\r", "\n")
            lines = text.split("\n")
            # The text after the last line end counts as a line, even if empty, only at the end of the file.
            yield from lines[:-1] if more else lines
            rest, start, line = block[end:], start + end, line + len(lines) - 1


def json_object(answer: str | None) -> dict[str, Any]:
    """The JSON object in a model's answer, from the first to the last brace; empty if there is none."""
    text = answer or ""
    try:
        found = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except (json.JSONDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_prompt(path: Path, names: set[str], key: str) -> Template:
    """The template of a prompt, with a placeholder `$name` for each of `names`.

    Raises:
        DataError: the file, which the param `key` names, is missing or does not have exactly `names`.
    """
    template = Template("\n".join(read_lines(path, DataError, f"{key} names it")))
    if not template.is_valid() or set(template.get_identifiers()) != names:
        raise DataError(f"{path} must have {', '.join(f'${name}' for name in sorted(names))} and no other $ name")
    return template


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
    """The rows of a csv file (or csv.gz), each with the line that it begins on; blank rows are left out.

    Quotes are read strictly: after an unclosed quote the rest of the file would be a single field.

    Raises:
        UserError: as `read_text`, and where the file is not valid csv.
    """
    read = read_gzip if path.name.lower().endswith(".gz") else read_text
    text = read(path, error, missing)
    # With newline="": line ends inside quotes are kept.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
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
    path: Path, rows: Sequence[tuple[int, list[str]]], columns: Sequence[str] | None, error: type[UserError]
) -> list[str]:
    """The names of the columns, from the first row of `read_csv`.

    Raises:
        UserError: `error`, if one of `columns` (None: of all that are there) is missing or occurs twice.
    """
    line, values = rows[0] if rows else (1, [])
    header = [name.strip() for name in values]
    names = ", ".join(header)[:200] or "nothing"
    columns = list(dict.fromkeys(header)) if columns is None else columns
    if lost := [name for name in columns if name not in header]:
        raise error(f"{path}:{line}: no column {', '.join(lost)}; found {names}")
    if twice := [name for name in columns if header.count(name) > 1]:
        raise error(f"{path}:{line}: column {', '.join(twice)} is there twice: {names}")
    return header


def read_records(
    path: Path, columns: Sequence[str] | None, error: type[UserError], missing: str
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a csv file with a header, each with the line that it begins on; columns not in `columns` are kept.

    Args:
        path: of the file.
        columns: that must be there, once; None: any, each once.
        error: the class to raise.
        missing: what to do if there is no such file.

    Raises:
        UserError: as `read_csv` and `read_header`, and where a row has more or fewer fields than the header.
    """
    rows = read_csv(path, error, missing)
    header = read_header(path, rows, columns, error)
    for line, values in rows[1:]:
        if problem := wrong_length(values, header):
            raise error(f"{path}:{line}: {problem}")
    return [(line, dict(zip(header, values, strict=True))) for line, values in rows[1:]]


def wrong_length(values: Sequence[str], header: Sequence[str]) -> str | None:
    """The problem if a row of csv has more or fewer fields than the header."""
    if len(values) == len(header):
        return None
    return f"{len(values)} fields, but the header has {len(header)}: {values[0][:40]!r}"


def require_utf8(text: str, where: str, error: type[Exception]) -> None:
    r"""Refuse a text that UTF-8 cannot hold; JSON can, as `\ud83d` alone.

    Raises:
        Exception: `error`, for half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise error(f"{where}: half of a surrogate pair, which no text file can hold") from None


def read_yaml(path: Path, error: type[UserError], missing: str) -> Any:
    """The content of a YAML file as JSON types; a date stays text.

    Raises:
        UserError: as `read_text`, and where the file is not valid YAML, or holds what JSON cannot.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = read_text(path, error, missing)
    try:
        return json.loads(json.dumps(YAML(typ="safe").load(text), default=str))
    # An impossible date, a number with too many digits, a list that contains itself, a list as a key.
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as problem:
        raise error(f"{path} is no valid YAML: {problem}") from None


def sha256_of(path: Path) -> str:
    """The hash of a file, as 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(content: bytes, at: int) -> int:
    """The number of the line, from 1, that a byte is in."""
    return len((content[:at] + b"x").splitlines())


def write_text(path: Path, text: str) -> None:
    r"""Write `text` to `path` as UTF-8 with `\n` line ends, as `write_bytes`."""
    write_bytes(path, text.encode())


def between_marks(page: str, begin: str, end: str, text: str, path: Path) -> str:
    """`page`, the content of `path`, with `text` between its marks `begin` and `end`.

    Raises:
        UserError: a mark is missing or repeated.
    """
    before, _, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not ended or begin in rest or end in after:
        raise UserError(f"{path} has no lines {begin.strip()!r} and {end.strip()!r}, once each, to write between")
    return f"{before}{begin}{text}{end}{after}"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically, creating its folder if missing.

    A reader sees the old or the new content, never a part: a temporary file in the same folder is renamed to `path`. A
    symbolic link at `path` is replaced, and its target (in a cache, say) is left alone.

    Raises:
        StorageError: the disk is full or read-only.
        OSError: the folder cannot be created or written to for another reason.
    """
    with whole_file(path, len(content)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole_file(path: Path, need: int | None = None) -> Iterator[Path]:
    """Yield a temporary file to write; it is renamed to `path` after the block, or removed if the block fails.

    Args:
        path: of the file; its folder is created if missing.
        need: its size in bytes, if known.

    Raises:
        StorageError: as `writing`.
    """
    # An ordinary file, so that the umask decides its mode (tempfile would make it private).
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
    """As `whole_file`, for a folder; the block creates it."""
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


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as csv (RFC 4180, but with line feeds alone), as `read_csv` reads it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as Parquet, without its index. Atomic.

    Raises:
        StorageError: as `writing`.
    """
    with whole_file(path, int(frame.memory_usage(deep=True).sum())) as temporary:
        frame.to_parquet(temporary, index=False)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Have `target` be the file `source`: a hard link, without bytes of its own, or a copy on another file system.

    For files that are replaced and never written to, as all that this module writes.
    """
    try:
        # os.link makes a link to a symbolic link.
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write `values` to `path` as indented JSON in their order, with a newline at the end, by `write_text`.

    Raises:
        ValueError: a value is NaN or infinite; names `path`, which is left unchanged.
        TypeError: JSON has no form for a value; `path` is left unchanged.
        OSError: as `write_text`.
    """
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    write_text(path, text + "\n")


def canonicalize_model_files(folder: Path) -> None:
    """Rewrite configuration files of models below `folder` so that equal runs give equal bytes.

    PEFT 0.21 writes `target_modules`, a set, in an order that differs between processes: it is sorted.
    transformers 5.23 stores with a tokenizer whether it was loaded with `local_files_only`: the key is removed.
    """
    for path in sorted(folder.rglob("adapter_config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config.get("target_modules"), list):
            write_json(path, {**config, "target_modules": sorted(config["target_modules"])})
    for path in sorted(folder.rglob("tokenizer_config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("local_files_only", None) is not None:
            write_json(path, config)
