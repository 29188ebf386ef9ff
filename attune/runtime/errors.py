"""Errors for users: what was wrong, where, and what to do; no traceback."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# Errors of writing a file that the person who runs the pipeline can fix.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
JOINERS = "\u200c\u200d"
"""Zero-width characters that belong to scripts and emoji; other invisible ones are replaced."""


class UserError(Exception):
    """A problem that the person who runs the pipeline can fix; the message says what, where and how."""


class StorageError(UserError):
    """A file cannot be written: the disk is full or read-only, or permission is missing."""


class ParamsError(UserError):
    """`params.yaml`, or a composed configuration, does not fit the schema."""


class DataError(UserError):
    """A file that a stage or tool reads is missing, or its content violates its format."""


class DownloadError(UserError):
    """A source file cannot be downloaded, or its hash is wrong."""


class ModelError(UserError):
    """A model, encoder or classifier cannot be loaded or used with these params."""


class TemplateError(ModelError):
    """A chat template refuses a conversation, or hides where a reply ends."""


class DamagedReference(ModelError):
    """The file of the reference model's log-probabilities has changed since it was written."""


class Stopped(KeyboardInterrupt):
    """A signal ends the process; `number` is that of the signal, and the message describes what was saved."""

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(kept)
        self.number = number


@contextmanager
def reported() -> Iterator[None]:
    """Print a `UserError` as its message alone and exit with 1; any other exception is a bug: print its traceback.

    A full or read-only disk is reported in the same way; SIGTERM and Ctrl-C exit with 128 + their number. If nobody
    reads the output any more, as with `| head`, exits without a word, as if by SIGPIPE.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        _exit(f"error: {error}", 1)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        kept = f": {error}" if str(error) else ""
        _exit(f"stopped by {signal.Signals(number).name}{kept}", 128 + number)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            # What is left in the buffer goes nowhere, else Python complains when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        if error.errno not in STORAGE:
            raise
        # Only errors of opening a file hold its name.
        _exit(f"error: {storage_message(Path(error.filename or Path.cwd()), error.errno)}", 1)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Within the block SIGTERM and Ctrl-C are appended to the yielded list, so that the block can shut down cleanly.

    A second signal ends the process at once.
    """
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        signal.signal(number, _stop)

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def writing(path: Path, need: int | Callable[[], int] | None, undo: Callable[[], None] | None = None) -> Iterator[None]:
    """Within the block, errors of writing, also those of libraries, become a `StorageError`.

    Args:
        path: the file or folder that is written.
        need: its size in bytes, if known.
        undo: removes what was written, before the error is raised.

    Raises:
        StorageError: the disk is full or read-only; names path, needed and free bytes.
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
    """Untrusted text as one line that cannot control a terminal or reorder letters.

    Control characters (escape sequences begin with them) and invisible marks become U+FFFD, white space becomes spaces.
    """
    return "".join(c if c.isprintable() or c in JOINERS else " " if c.isspace() else "\ufffd" for c in text)


def reason(error: BaseException) -> str:
    """What a library's error says, to quote: its first line without the full stop, or its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")


def validation_message(problem: Mapping[str, Any]) -> str:
    """What pydantic says of a value, in one of `ValidationError.errors()`; the words alone of a validator of ours."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message: str = problem["msg"]
    return message[:1].lower() + message[1:]


def storage_message(path: Path, number: int, need: int | None = None) -> str:
    """Why `path` cannot be written, by the number of the error; `need` in bytes."""
    needed = "" if need is None else f" {need} bytes are needed and"
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    begin = (
        f"{path} cannot be written ({os.strerror(number)}):{needed} {shutil.disk_usage(existing).free} are free there"
    )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{begin}; give this user the right to write, or work in another folder"
    return f"{begin}; make room (`make clean`, `dvc gc --workspace`) or raise the limit, and run it again"


def _number(error: BaseException) -> int | None:
    """The errno of an exception if it is in `STORAGE`, also if a library raised another exception for it; else None."""
    if isinstance(error, OSError):
        return error.errno if error.errno in STORAGE else None
    message = str(error)
    if type(error).__name__ == "SafetensorError" or "inline_container.cc" in message:
        # "I/O error: No space left on device (os error 28)" and "open file failed with strerror: …".
        for number in STORAGE:
            if os.strerror(number) in message:
                return number
    # A later write of torch.save fails without a number: "[enforce fail at inline_container.cc:672]".
    return errno.ENOSPC if "inline_container.cc" in message and "unexpected pos" in message else None


def _is_output_closed() -> bool:
    poll = select.poll()
    # Without a mask it answers errors alone.
    poll.register(sys.stdout, 0)
    return bool(poll.poll(0))


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)


def _exit(message: str, code: int) -> NoReturn:
    # A message may quote an untrusted file.
    print("\n".join(map(visible, message.split("\n"))), file=sys.stderr)
    sys.exit(code)
