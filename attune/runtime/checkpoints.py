"""Where an unfinished stage keeps its checkpoints: `.checkpoints/<stage>-<hash of its deps and params>`.

DVC removes the outs of a stage before it runs, so what must outlive a kill lies elsewhere. By the hash a killed stage
finds its own checkpoints again, and a stage whose code, data or params changed never finds another's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from attune.runtime.distributed import broadcast_from_main, is_main_process, on_main_process
from attune.runtime.errors import UserError
from attune.runtime.io import sha256_of

ROOT = Path(".checkpoints")
DONE = ".done"
LOCK = Path("dvc.lock")


@contextmanager
def checkpoints(stage: str, params: object, deps: list[Path]) -> Iterator[Path]:
    """The checkpoint folder of a stage; it is kept until DVC has recorded what the stage made.

    A stage that is killed behind its end, while DVC hashes its outs, so loses nothing. One that DVC has recorded and
    runs again (`dvc repro --force`) begins anew. Of several ranks the first holds the lock, and makes the folder.

    Args:
        stage: the stage's name, `dpo@e1`.
        params: whatever determines the result beside the files; its `repr` is hashed.
        deps: files and folders whose content determines the result.

    Raises:
        UserError: another process is at work in the same folder (two writers would spoil it).
    """
    folder = ROOT / f"{stage.replace('@', '-')}-{broadcast_from_main(lambda: _digest(params, deps))}"
    with _lock(folder.with_suffix(".lock"), stage) if is_main_process() else nullcontext():
        on_main_process(lambda: _make(folder))
        yield folder
        on_main_process((folder / DONE).touch)


def _make(folder: Path) -> None:
    tidy()
    folder.mkdir(exist_ok=True)
    (folder / DONE).unlink(missing_ok=True)


def tidy() -> None:
    """Remove the folders of stages that DVC has recorded since their end: `dvc.lock` is the younger one."""
    for done in ROOT.glob(f"*/{DONE}"):
        if LOCK.is_file() and LOCK.stat().st_mtime_ns > done.stat().st_mtime_ns:
            shutil.rmtree(done.parent)


@contextmanager
def _lock(path: Path, stage: str) -> Iterator[None]:
    """Hold an advisory lock, which the kernel releases however the process ends."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = f"process {pid}" if (pid := file.read().strip()) else "another process"
            raise UserError(
                f"stage {stage} is running in {holder}, which holds {path}: wait for it, or end it"
            ) from None
        # The file stays: were it removed, a process that waits on it and one that makes it anew could both go on.
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        yield


def _digest(params: object, deps: list[Path]) -> str:
    digest = hashlib.sha256(repr(params).encode())
    for file in sorted(_files(deps)):
        digest.update(str(file).encode() + b"\0")
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()[:16]


def _files(deps: list[Path]) -> Iterator[Path]:
    for dep in deps:
        if dep.is_file():
            yield dep
        else:
            yield from (f for f in dep.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
