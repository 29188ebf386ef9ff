"""What `dvc repro` would run and why, also in a clone that has no data.

`dvc repro --allow-missing --dry` of DVC 3.67 ends at the first stage that would run and lacks an input, since it hashes
the inputs to look for the run in its cache; and a folder that holds outs of other stages beside files of Git differs
from dvc.lock as soon as the outs are missing. Here such inputs are judged by whether the stages that make them run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MISSING = ("deleted", "not in cache")
# Stages before one that are named as its reason.
SHOWN = 2


def would_run(stages: Sequence[Any], graph: Any, allow_missing: bool) -> dict[str, list[str]]:
    """Stage to the reasons why it would run, or be restored from the cache; without those that would not.

    A stage also counts as run where a stage before it is, although what that makes may turn out to be equal.

    Args:
        stages: of DVC, each after those that it depends on.
        graph: of all stages of the pipeline, whose successors are what a stage depends on.
        allow_missing: whether outs may be missing.
    """
    made = [out.fs_path for stage in graph for out in stage.outs]
    reasons: dict[str, list[str]] = {}
    for stage in stages:
        before = [needed.addressing for needed in graph.successors(stage) if needed.addressing in reasons]
        more = f" and {len(before) - SHOWN} more" if len(before) > SHOWN else ""
        after = [f"after {', '.join(before[:SHOWN])}{more}"] if before else []
        if found := [*own_reasons(stage, made, allow_missing), *after]:
            reasons[stage.addressing] = found
    return reasons


def own_reasons(stage: Any, made: Sequence[str], allow_missing: bool) -> Iterator[str]:
    """Why a stage would run, whatever the others do.

    Args:
        stage: of DVC.
        made: the paths of the outs of all stages.
        allow_missing: as of `would_run`.
    """
    if not any(out.hash_info for out in stage.outs):
        yield "dvc.lock has no run of it"
        return
    if stage.changed_stage():
        yield "its command"
    for dependency in stage.deps:
        if not of_others(dependency.fs_path, made):
            yield from named(dependency.status())
    for out in stage.outs:
        status = out.status().get(str(out))
        if status and not (allow_missing and status in MISSING):
            yield f"{out} is {status}"


def named(status: dict[str, Any]) -> Iterator[str]:
    """What differs by a dependency's status: its path, or each key of params."""
    for path, what in status.items():
        if isinstance(what, dict):
            yield from (f"params {key}" for key in what)
        else:
            yield path if what == "modified" else f"{path} is {what}"


def of_others(path: str, made: Sequence[str]) -> bool:
    """Whether a path is, or lies in, an out of a stage, or is a folder that lacks an out that belongs into it."""
    if any(path == out or path.startswith(out + os.sep) for out in made):
        return True
    return any(out.startswith(path + os.sep) and not Path(out).exists() for out in made)


def listed(reasons: dict[str, list[str]], count: int) -> str:
    """The list as text, a line for each stage."""
    if not reasons:
        return f"None of {count} stages would run."
    lines = (f"  {name}: {', '.join(why)}" for name, why in reasons.items())
    return "\n".join([f"{len(reasons)} of {count} stages would run:", *lines])
