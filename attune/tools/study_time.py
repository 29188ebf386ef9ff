"""How long a study takes: the different stages of its experiments, at the times that such stages took before.

Experiments share stages: those with equal commands, params and inputs run once, and then come from DVC's run cache.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attune.config.params import compose, load
from attune.config.schema import Params
from attune.runtime.errors import UserError
from attune.runtime.io import read_yaml
from attune.tools.pipeline import in_order
from attune.tools.record import RECORDS, compositions
from attune.tools.stage_times import TIMES, Time, conditions, in_words, kind, read_times, recorded, rounded, task
from attune.tools.study_plan import SEED, Grid

SOURCE = f"{TIMES} of this machine"


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline that some params compose: its command, inputs and keys of the params, and the stages that
    make its inputs."""

    name: str
    command: str
    inputs: tuple[str, ...]
    keys: tuple[str, ...]
    needs: tuple[str, ...]

    def digest(self, values: Mapping[str, Any], before: Mapping[str, str]) -> str:
        """A hash of all that the stage depends on but code and files that no stage makes.

        Args:
            values: the params.
            before: the digests of the stages that it needs.
        """
        params = [(key, reduce(lambda part, name: part[name], key.split("."), values)) for key in self.keys]
        whole = [self.command, self.inputs, params, [before[name] for name in self.needs]]
        return hashlib.blake2b(json.dumps(whole).encode(), digest_size=16).hexdigest()


def estimate(settings: Grid, targets: Sequence[str]) -> str:
    """The number of experiments and of their different stages, and how long they take one after another, in words.

    Args:
        settings: the grid.
        targets: stages of an experiment; none: all.

    Raises:
        UserError: the overrides of an experiment do not compose, or a target is no stage.
    """
    with TemporaryDirectory(prefix="attune-study-") as folder:
        experiments, stages = different(settings, targets, Path(folder))
        sources = [(SOURCE, read_times()), *records(Path(folder))]
    left, seconds, used = [], 0.0, set()
    for name, params in stages:
        took = next(
            ((one, source) for source, times in sources if (one := expected(name, params, times)) is not None), None
        )
        if took is None:
            left.append((name, params))
            continue
        seconds += took[0]
        used.add(took[1])
    head = f"{experiments} experiments of {len(stages)} different stages"
    what = "; ".join(dict.fromkeys(conditions(params) for _, params in left))
    if not used:
        return f"{head}; no estimate of the time: no such stage was measured ({what})"
    told = ", ".join(source for source, _ in sources if source in used)
    lines = [
        f"{head}: {'at least' if left else 'about'} {in_words(rounded(seconds))}, one after another",
        f"estimated from {told}, scaled by epochs, pairs, replies and questions",
    ]
    if left:
        kinds = ", ".join(dict.fromkeys(task(name, params) for name, params in left))
        lines.append(f"no estimate of {len(left)} stages ({kinds}): no such stage was measured ({what})")
    return "\n".join(lines)


def expected(name: str, params: Params, times: Mapping[str, Time]) -> float | None:
    """Seconds of a stage by the time of the same stage, or else by the first of its kind that says something.

    Samples of the model for pairs take what as many replies take.
    """
    of_kind = [time for other, time in times.items() if kind(other) == kind(name)]
    found = (time.expected(name, params) for time in ([times[name]] if name in times else []) + of_kind)
    seconds = next((seconds for seconds in found if seconds is not None), None)
    if seconds is None and kind(name) == "pairs" and (samples := params.pairs.on_policy_samples):
        replies = type(params.generate)(**vars(params.generate) | {"limit": params.pairs.limit})
        of_one = expected("generate", replace(params, generate=replies), times)
        return of_one and of_one * samples
    return seconds


def different(settings: Grid, targets: Sequence[str], work: Path) -> tuple[int, list[tuple[str, Params]]]:
    """The number of experiments, and each stage that differs from all others, with params that it runs with.

    Args:
        settings: the grid.
        targets: as of `estimate`.
        work: a folder for pipelines, which is left as a project of DVC.
    """
    (work / ".dvc").mkdir()
    (work / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")
    shutil.copy("dvc.yaml", work)
    count, found = 0, dict[str, tuple[str, Params]]()
    for overrides, seeds in points(settings):
        count += len(seeds)
        # What a seed changes is known without composing again: its own value.
        compose([*overrides, f"{SEED}={seeds[0]}"], work / "params.yaml")
        params, values = load(work / "params.yaml"), read_yaml(work / "params.yaml", UserError, "")
        stages = pipeline(work, targets)
        for seed in seeds:
            digests: dict[str, str] = {}
            for stage in stages:
                digests[stage.name] = stage.digest({**values, SEED: int(seed)}, digests)
                found.setdefault(digests[stage.name], (stage.name, params))
    return count, list(found.values())


def points(settings: Grid) -> Iterator[tuple[list[str], list[str]]]:
    """The overrides of each point of the grid but the seed, and its seeds.

    Raises:
        UserError: an override is not one of Hydra's.
    """
    from dvc.utils.hydra import get_hydra_sweeps

    for family in settings.families.values():
        of_point: dict[tuple[str, ...], list[str]] = {}
        for sweep in get_hydra_sweeps({"params.yaml": family}):
            [overrides] = sweep.values()
            rest = tuple(one for one in overrides if not one.startswith(f"{SEED}="))
            seeds = [one.partition("=")[2] for one in overrides if one not in rest]
            of_point.setdefault(rest, []).extend(seeds)
        for overrides, seeds in of_point.items():
            yield list(overrides), seeds


def pipeline(folder: Path, targets: Sequence[str]) -> list[Stage]:
    """The stages of a project that the targets need, in their order.

    Raises:
        UserError: a target is no stage.
    """
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        graph, stages = repo.index.graph, []
        for stage in in_order(repo, targets):
            params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
            stages.append(
                Stage(
                    stage.name,
                    str(stage.cmd),
                    tuple(sorted(dep.def_path for dep in stage.deps if dep not in params)),
                    tuple(sorted(key for dep in params for key in dep.params)),
                    tuple(sorted(needed.name for needed in graph.successors(stage))),
                )
            )
        return stages


def records(work: Path) -> Iterator[tuple[str, dict[str, Time]]]:
    """The times of each record, newest first, with its file and machine in words.

    Args:
        work: a folder to compose params in.
    """
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(RECORDS.glob("*.json"))]
    for path, record in sorted(found, key=lambda one: one[1]["date"], reverse=True):
        # "python -m attune record NAME overrides"; one that ran nothing has an option in the place of NAME.
        overrides = shlex.split(record["command"])[5:]
        computer = record["machine"]
        words = f"{computer['processor']}, {computer['cores']} cores, {computer['gpu'] or 'no GPU'}"
        for times in recorded(record, compositions(overrides), work):
            yield f"{path} ({words})", times
