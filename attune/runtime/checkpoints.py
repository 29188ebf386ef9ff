"""Checkpoint folders of unfinished stages: `.checkpoints/<stage>-<hash of its dependencies and params>`.

DVC removes the outs of a stage before it runs, so checkpoints that must survive a kill are stored elsewhere. The hash
covers the dependencies and params that dvc.yaml lists for the stage and nothing else: a killed stage resumes from its
checkpoints, a stage with changed code, data or params never reads outdated ones, and other edits invalidate none.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from attune.runtime.distributed import broadcast_from_main, is_main_process, on_main_process
from attune.runtime.errors import UserError
from attune.runtime.io import read_yaml, sha256_of

# Environment variable: another folder for them, such as one that outlives a job of a cluster.
FOLDER = "ATTUNE_CHECKPOINTS"
DONE = ".done"
PIPELINE, LOCK = Path("dvc.yaml"), Path("dvc.lock")


def root() -> Path:
    """The folder of the checkpoint folders."""
    return Path(os.environ.get(FOLDER) or ".checkpoints")


@contextmanager
def checkpoints(stage: str, params: Any) -> Iterator[Path]:
    """The checkpoint folder of a stage; it is kept until DVC has recorded the outs of the stage.

    A stage that is killed after its end, while DVC hashes its outs, loses nothing. A stage that DVC has recorded and
    that runs again (`dvc repro --force`) starts from the beginning. With several ranks the main process holds the lock
    and creates the folder.

    Args:
        stage: as DVC names it, `dpo@e1`.
        params: the run's `Params`, of which the sections that dvc.yaml names for the stage are hashed.

    Raises:
        UserError: another process uses the same folder (two writers would corrupt it), or dvc.yaml has no such
            stage.
    """
    folder = root() / f"{stage.replace('@', '-')}-{broadcast_from_main(lambda: _digest(*_inputs(stage, params)))}"
    with _lock(folder.with_suffix(".lock"), stage) if is_main_process() else nullcontext():
        on_main_process(lambda: _make(folder))
        yield folder
        on_main_process((folder / DONE).touch)


def _inputs(stage: str, params: Any) -> tuple[list[Path], dict[str, Any]]:
    """The dependencies of a stage and the values of its params, as dvc.yaml lists them."""
    name, _, key = stage.partition("@")
    stages = read_yaml(PIPELINE, UserError, "run from the project's root")["stages"]
    if name not in stages:
        raise UserError(f"{PIPELINE} has no stage {name!r}: {', '.join(stages)}")
    entry = stages[name]
    scope = {"key": key}
    if key:
        group = _value(entry["foreach"].strip("${}"), params, scope)
        scope["item"] = group[key]
        entry = entry["do"]

    def resolved(text: str) -> str:
        return re.sub(r"\$\{([^}]+)\}", lambda match: str(_value(match[1], params, scope)), text)

    names = [resolved(text) for text in entry["params"]]
    return [Path(resolved(text)) for text in entry["deps"]], {path: _value(path, params, {}) for path in names}


def _value(path: str, params: Any, scope: dict[str, Any]) -> Any:
    """The value at a dotted path: `item.init` and `key` in `scope`, `adapters.sft` and `pairs.table` in the params."""
    first, *rest = path.split(".")
    value = scope[first] if first in scope else getattr(params, first)
    for part in rest:
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def _make(folder: Path) -> None:
    tidy()
    folder.mkdir(exist_ok=True)
    (folder / DONE).unlink(missing_ok=True)


def tidy() -> None:
    """Remove the folders of stages that DVC has recorded since they ended: `dvc.lock` is newer than their `.done`."""
    for done in root().glob(f"*/{DONE}"):
        if LOCK.is_file() and LOCK.stat().st_mtime_ns > done.stat().st_mtime_ns:
            shutil.rmtree(done.parent)


@contextmanager
def _lock(path: Path, stage: str) -> Iterator[None]:
    """Hold an advisory lock, which the kernel releases in whatever way the process ends."""
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
        # Never removed: a process that has the old file open and one that creates it again could both hold a lock.
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        yield


def _digest(deps: list[Path], params: dict[str, Any]) -> str:
    digest = hashlib.sha256(repr(params).encode())
    for file in sorted(_files(deps)):
        digest.update(str(file).encode() + b"\0")
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()[:16]


def _files(deps: list[Path]) -> Iterator[Path]:
    for dep in set(deps):
        if dep.is_file():
            yield dep
        else:
            yield from (f for f in dep.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
