"""Errors for people: what was wrong, where, and what to do, without a traceback."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# What the person who runs the pipeline can mend, of the errors that writing a file can end with.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
JOINERS = "\u200c\u200d"
"""Zero-width characters that belong to scripts and emoji; other invisible ones are replaced."""


class UserError(Exception):
    """Something that the person who runs the pipeline can mend; the message says what, where and how."""


class StorageError(UserError):
    """A file cannot be written: the disk is full or read-only, or permission is missing."""


class ParamsError(UserError):
    """`params.yaml`, or a composed configuration, does not fit the schema."""


class DataError(UserError):
    """A file that a stage or tool reads is missing, or its content is not what its format promises."""


class DownloadError(UserError):
    """A source file cannot be downloaded, or its hash is wrong."""


class ModelError(UserError):
    """A model, encoder or classifier cannot be loaded or used as the params ask."""


class TemplateError(ModelError):
    """A chat template refuses a conversation, or hides where a reply ends."""


class DamagedReference(ModelError):
    """The file of the reference model's log-probabilities is not what was written."""


class Stopped(KeyboardInterrupt):
    """A signal ends the process; `number` is the signal's, and the message what is kept."""

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(kept)
        self.number = number


@contextmanager
def reported() -> Iterator[None]:
    """Print a `UserError` as its message alone and exit with 1; another exception is a bug and keeps its traceback.

    So are a disk that is full or may not be written to, and SIGTERM and Ctrl-C, which exit with 128 + their number.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except UserError as error:
        _exit(f"error: {error}", 1)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        kept = f": {error}" if str(error) else ""
        _exit(f"stopped by {signal.Signals(number).name}{kept}", 128 + number)
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        # A write that fails, other than one that opens a file, names none.
        _exit(f"error: {storage_message(Path(error.filename or Path.cwd()), error.errno)}", 1)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Within the block SIGTERM and Ctrl-C are put into the list that it gets, for the block to end in order.

    A second one ends the process at once.
    """
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        signal.signal(number, _stop)

    before: dict[int, Any] = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def writing(path: Path, need: int | Callable[[], int] | None, undo: Callable[[], None] | None = None) -> Iterator[None]:
    """Within the block, what keeps a library from writing becomes an error for people.

    Args:
        path: the file or folder that is written.
        need: bytes of it, if known.
        undo: removes what was written, before the error is raised.

    Raises:
        StorageError: the disk is full, or may not be written to; names path, need and what is free.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        message = storage_message(path, number, need() if callable(need) else need)
        if undo is not None:
            undo()
        raise StorageError(message) from None


def visible(text: str) -> str:
    """Text of any origin as one line without what would act on a terminal or turn letters around.

    Control characters (escape sequences begin with one) and invisible marks become U+FFFD, white space blanks.
    """
    return "".join(c if c.isprintable() or c in JOINERS else " " if c.isspace() else "\ufffd" for c in text)


def storage_message(path: Path, number: int, need: int | None = None) -> str:
    """What keeps `path` from being written, by the number of the error; `need` in bytes."""
    needed = "" if need is None else f" {need} bytes are needed and"
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    begin = f"{path} cannot be written ({os.strerror(number)}):{needed} {shutil.disk_usage(there).free} are free there"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{begin}; give this user the right to write, or work in another folder"
    return f"{begin}; make room (`make clean`, `dvc gc --workspace`) or raise the limit, and run it again"


def _number(error: BaseException) -> int | None:
    """The number of the error of the operating system behind an exception, where it is one of `STORAGE`."""
    if isinstance(error, OSError):
        return error.errno if error.errno in STORAGE else None
    said = str(error)
    if type(error).__name__ == "SafetensorError" or "inline_container.cc" in said:
        # "I/O error: No space left on device (os error 28)" and "open file failed with strerror: …".
        for number in STORAGE:
            if os.strerror(number) in said:
                return number
    # A write of torch.save that fails behind that gives no number: "[enforce fail at inline_container.cc:672]".
    return errno.ENOSPC if "inline_container.cc" in said and "unexpected pos" in said else None


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)


def _exit(message: str, code: int) -> NoReturn:
    # A message may quote a hostile file.
    print("\n".join(map(visible, message.split("\n"))), file=sys.stderr)
    sys.exit(code)
