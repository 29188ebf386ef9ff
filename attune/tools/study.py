"""A paper's table or figure as a grid of experiments: queue it, wait for it, and collect the results.

    python -m attune study show empo-figure3          # what would be queued, what has finished, how long it takes
    python -m attune study run empo-figure3           # queue the grid in DVC, start its workers, wait, collect
    python -m attune study collect empo-figure3       # write the finished experiments as csv, table and figure

Studies are the files of `studies/`. Most have the scales `small` (the default; two cores, hours) and `paper` (a GPU);
some have `quick` (two cores, an hour or two), `counselling-replies` and `attune` have it alone: `--scale quick`.
Overrides after the name replace those of the scale: `seed=7 generate.limit=100`. DVC queues the product of the values,
for each of the study's settings; `setting=opposite,random` chooses some. The queue survives when this command is
stopped: `dvc queue start` continues it, and `dvc queue status` shows its progress. Stages that have run before, in any
experiment, come from DVC's run cache.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import get_args

from attune.config.params import compose, load
from attune.download.tracked import own_paths, untracked
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError
from attune.runtime.machine import commit
from attune.tools.study_plan import SMALL, Grid, Scale, grid, read
from attune.tools.study_results import collect
from attune.tools.study_time import estimate, points

# Seconds between two polls of the queue; a worker starts faster than that.
PAUSE = 30.0
THREADS = "compute.threads"


def done(prefix: str, start: str | None = None) -> dict[str, str]:
    """The finished experiments whose names begin with `prefix`: name to Git revision.

    Args:
        prefix: a grid's or a run's.
        start: the commit that they were started from; None: this one.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        listed = repo.experiments.ls(rev=start)
    return {name: rev for entries in listed.values() for name, rev in entries if name.startswith(prefix) and rev}


def queue_commands(run: str, settings: Grid, targets: Sequence[str], *more: str) -> list[list[str]]:
    """The arguments of `dvc` that queue a grid, with `more` overrides; a command for each of its settings.

    DVC numbers the experiments of a command: `run-1`, `run-2`, …; those of a setting `run-setting-1`, ….
    """
    commands = []
    for end, family in settings.families.items():
        overrides = [argument for override in (*family, *more) for argument in ("-S", override)]
        commands.append(["exp", "run", "--queue", "--name", f"{run}{end}", *overrides, *targets])
    return commands


def run_grid(settings: Grid, targets: Sequence[str], jobs: int) -> str:
    """Queue a grid and wait until none of its experiments is queued or running.

    Returns:
        The commit that they were started from: the user may have made another one meanwhile.

    On a busy machine a worker of DVC 3.67 may end before the queue is empty: its monitor takes a late answer for an
    empty queue (`dvc_task/worker/temporary.py`). `dvc exp run --run-all` then waits for ever, so this loop starts
    workers that are missing again.

    Raises:
        UserError: DVC refuses the grid, or an experiment failed.
    """
    # DVC refuses a name that has finished before; a random part also keeps those of several machines apart.
    run, start = f"{settings.name}-{secrets.token_hex(3)}", commit()
    for command in queue_commands(run, settings, targets, *threads_of(settings, jobs, os.cpu_count() or 1)):
        _dvc(*command)
    counts = [in_queue(run)]
    # An experiment that a worker is just taking is neither queued nor running: none twice in a row is the end.
    while any(chain(*counts[-2:])):
        queued, running = counts[-1]
        if counts[-1] not in counts[:-1]:
            print(f"{queued} queued, {running} running", flush=True)
        if queued and running < jobs:
            _dvc("queue", "start", "-j", str(jobs))
        time.sleep(PAUSE)
        counts.append(in_queue(run))
    experiments = sum(len(seeds) for _, seeds in points(settings))
    if failed := experiments - len(done(run, start)):
        raise UserError(
            f"{failed} of {experiments} experiments failed: `dvc queue status` lists those of {run}, and "
            "`dvc queue logs NAME` says why; the same command runs them again"
        )
    return start


def in_queue(run: str) -> tuple[int, int]:
    """The numbers of a run's experiments that are queued and that are running."""
    from dvc.repo import Repo

    with Repo() as repo:
        queue = repo.experiments.celery_queue
        names = [[str(entry.name) for entry in entries] for entries in (queue.iter_queued(), queue.iter_active())]
    queued, running = (sum(name.startswith(run) for name in part) for part in names)
    return queued, running


def require_tracked(settings: Grid) -> None:
    """Check that the queue, which copies tracked files only, has the user's files that the experiments read.

    Raises:
        UserError: it does not, or the overrides of an experiment do not compose.
    """
    paths: list[str] = []
    with tempfile.TemporaryDirectory(prefix="attune-study-") as folder:
        file = Path(folder, "params.yaml")
        for overrides, _ in points(settings):
            compose(overrides, file)
            paths += own_paths(load(file))
    if sentences := untracked(dict.fromkeys(paths)):
        raise UserError("\n".join(sentences))


def threads_of(settings: Grid, jobs: int, cores: int) -> list[str]:
    """The override that divides the cores among `jobs` experiments; none for a single job, or if the study sets it."""
    given = any(override.startswith(f"{THREADS}=") for override in settings.overrides)
    return [] if given or jobs == 1 else [f"{THREADS}={max(1, cores // jobs)}"]


def _dvc(*arguments: str) -> None:
    # Output to a file: a worker that DVC starts would keep a pipe open while it works.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        command = [sys.executable, "-m", "dvc", *arguments]
        if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
            output.seek(0)
            raise UserError(f"dvc {' '.join(arguments)}: {output.read().strip()}")


def main(argv: Sequence[str]) -> None:
    """Show, run or collect a study."""
    parser = command_parser("study", __doc__)
    parser.add_argument("action", choices=["show", "run", "collect"])
    parser.add_argument("name", help="of a file of studies/, without .yaml")
    parser.add_argument("overrides", nargs="*", help="as of `dvc exp run -S`: seed=7 generate.limit=100")
    parser.add_argument("--scale", default=SMALL, choices=get_args(Scale))
    parser.add_argument("-j", "--jobs", type=int, default=1, help="for run: parallel experiments; default: 1")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.jobs < 1:
        parser.error(f"argument -j/--jobs: {arguments.jobs} experiments at a time: at least 1")
    study = read(arguments.name)
    settings = grid(arguments.name, study, arguments.scale, arguments.overrides)
    if arguments.action == "show":
        for command in queue_commands(settings.name, settings, study.targets):
            print(" ".join(["dvc", *command]))
        print(f"finished: {', '.join(done(settings.name)) or 'none'}")
        print(estimate(settings, study.targets))
        return
    start = None
    if arguments.action == "run":
        require_tracked(settings)
        start = run_grid(settings, study.targets, arguments.jobs)
    collect(arguments.name, study, settings, done(settings.name, start))
