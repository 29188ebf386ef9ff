"""Where an unfinished stage keeps its checkpoints: `.checkpoints/<stage>-<hash of its deps and params>`.

DVC removes the outs of a stage before it runs, so what must outlive a kill lies elsewhere. By the hash a killed stage
finds its own checkpoints again, and a stage whose code, data or params changed never finds another's.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import UserError

ROOT = Path(".checkpoints")


@contextmanager
def checkpoints(stage: str, params: object, deps: list[Path]) -> Iterator[Path]:
    """The checkpoint folder of a stage; it is removed when the block ends well and kept when it does not.

    Args:
        stage: the stage's name, `dpo@e1`.
        params: whatever determines the result beside the files; its `repr` is hashed.
        deps: files and folders whose content determines the result.

    Raises:
        UserError: another process is at work in the same folder (two writers would spoil it).
    """
    folder = ROOT / f"{stage.replace('@', '-')}-{_digest(params, deps)}"
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_suffix(".lock"), stage):
        yield folder
        shutil.rmtree(folder)


@contextmanager
def _lock(path: Path, stage: str) -> Iterator[None]:
    """Hold an advisory lock, which the kernel releases however the process ends."""
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"stage {stage} is running in another process, which holds {path}: wait for it") from None
        # The file stays: were it removed, a process that waits on it and one that makes it anew could both go on.
        yield


def _digest(params: object, deps: list[Path]) -> str:
    digest = hashlib.sha256(repr(params).encode())
    for file in sorted(_files(deps)):
        digest.update(str(file).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _files(deps: list[Path]) -> Iterator[Path]:
    for dep in deps:
        if dep.is_file():
            yield dep
        else:
            yield from (f for f in dep.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
