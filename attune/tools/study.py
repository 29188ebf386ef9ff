"""A paper's table or figure as a grid of experiments: queue it, wait for it, and read what came out.

    python -m attune study show empo-figure3          # the grid and the stages of each experiment; nothing is run
    python -m attune study run empo-figure3           # queue what is missing, start DVC's workers, wait, collect
    python -m attune study collect empo-figure3       # the experiments that are done, as csv, table and figure

Studies are the files of `studies/`. Each has two scales: `tiny`, which a machine with two cores runs, and `paper`
(`--scale paper`). Overrides behind the name replace those of the scale: `seed=7 generate.limit=100`. An experiment is
named after the study and what it overrides; one that is done at this commit is not run again, so that a study that was
stopped goes on with what is left. How many run side by side (`-j`) decides no name: `collect` needs none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attune.config.params import compose
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError
from attune.tools.pipeline import stages_in_order
from attune.tools.study_plan import Experiment, experiments, read
from attune.tools.study_results import collect

# Seconds between two looks at the queue.
PAUSE = 5.0
# Seconds that a worker may take to begin.
STARTING = 60.0
THREADS = "compute.threads"


def done(points: Sequence[Experiment]) -> dict[str, str]:
    """The experiments among `points` that have come to their end at this commit: name to Git revision."""
    from dvc.repo import Repo

    names = {one.name for one in points}
    with Repo() as repo:
        listed = repo.experiments.ls()
    return {name: rev for entries in listed.values() for name, rev in entries if name in names and rev}


def states(points: Sequence[Experiment]) -> dict[str, str]:
    """What DVC's queue says of `points`: name to Queued, Running, Failed or Success; the last word where it has two."""
    from dvc.repo import Repo

    names = {one.name for one in points}
    with Repo() as repo:
        listed = sorted(repo.experiments.celery_queue.status(), key=lambda one: one["timestamp"])
    return {one["name"]: one["status"] for one in listed if one["name"] in names}


def queue(points: Sequence[Experiment], targets: Sequence[str], threads: int | None) -> int:
    """Queue what is neither done nor in the queue.

    Args:
        points: of the grid.
        targets: the stages to run; all for none.
        threads: of each experiment that does not override `compute.threads` itself; None: those of the params. They
            are no part of an experiment's name, so that one is found however many ran beside it.

    Returns:
        How many were queued.

    Raises:
        UserError: DVC takes one not; names it and what DVC said.
    """
    finished, waiting = done(points), states(points)
    new = [one for one in points if one.name not in finished and waiting.get(one.name) not in ("Queued", "Running")]
    for one in new:
        own = [] if threads is None or THREADS in one.overrides else [f"{THREADS}={threads}"]
        settings = [argument for override in (*one.arguments, *own) for argument in ("-S", override)]
        _dvc("exp", "run", "--queue", "--name", one.name, *settings, *targets)
    return len(new)


def start(jobs: int) -> None:
    """Start DVC's workers where something is queued; they go on where this process ends."""
    from dvc.repo import Repo

    with Repo() as repo:
        waiting = any(repo.experiments.celery_queue.iter_queued())
    if waiting:
        _dvc("queue", "start", "-j", str(jobs))


def wait(points: Sequence[Experiment], jobs: int) -> None:
    """Look at the queue until nothing of `points` waits or runs, and print what changes.

    On a busy machine a worker of DVC 3.67 may get no answer from itself in time, take that for an empty queue and end
    (dvc_task/worker/temporary.py, `monitor`): where fewer than `jobs` run and something waits, they are started again.

    Raises:
        UserError: an experiment failed; names it and where its log is.
    """
    before: Counter[str] = Counter()
    started = time.monotonic()
    while True:
        finished, found = done(points), states(points)
        now = Counter("done" if one.name in finished else found.get(one.name, "Lost").lower() for one in points)
        if now != before:
            print(", ".join(f"{count} {state}" for state, count in sorted(now.items())), flush=True)
        before = now
        if not now["queued"] and not now["running"]:
            break
        if now["queued"] and now["running"] < jobs and time.monotonic() - started > STARTING:
            start(jobs)
            started = time.monotonic()
        time.sleep(PAUSE)
    if failed := [one for one in points if one.name not in finished]:
        raise UserError(
            f"{len(failed)} of {len(points)} experiments did not come to their end: `dvc queue logs {failed[0].name}` "
            "says why; the same command runs them again"
        )


def share_out(jobs: int, cores: int) -> int | None:
    """The threads of each of `jobs` experiments, since threads in excess wait; None where one has all cores."""
    return max(1, cores // jobs) if jobs > 1 else None


def show(points: Sequence[Experiment], targets: Sequence[str]) -> None:
    """Print the grid, and the stages of an experiment as DVC would run them; `params.yaml` is left as it is."""
    finished = done(points)
    for one in points:
        print(f"{one.name}  {'done' if one.name in finished else 'to run'}  {' '.join(one.arguments)}")
    print(f"\nstages of each: {', '.join(stages_of(points[0], targets))}")


def stages_of(point: Experiment, targets: Sequence[str]) -> list[str]:
    """The stages that an experiment has, in their order: those of `targets` and what they hang on; all for none."""
    params = Path("params.yaml")
    kept = params.read_bytes()
    try:
        compose(point.arguments)
        return stages_in_order(targets)
    finally:
        params.write_bytes(kept)


def _dvc(*arguments: str) -> None:
    # Into a file: a worker that is started keeps a pipe open for as long as it works.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        command = [sys.executable, "-m", "dvc", *arguments]
        if subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, check=False).returncode:
            said.seek(0)
            raise UserError(f"dvc {' '.join(arguments)}: {said.read().strip()}")


def main(argv: Sequence[str]) -> None:
    """Show, run or collect a study."""
    parser = command_parser("study", __doc__)
    parser.add_argument("action", choices=["show", "run", "collect"])
    parser.add_argument("name", help="of a file of studies/, without .yaml")
    parser.add_argument("overrides", nargs="*", help="as of `dvc exp run -S`: seed=7 generate.limit=100")
    parser.add_argument("--scale", default="tiny", choices=["tiny", "paper"])
    parser.add_argument("-j", "--jobs", type=int, default=1, help="of run: experiments side by side; 1")
    given = parser.parse_args(argv)
    study = read(given.name)
    points = experiments(given.name, study, given.scale, given.overrides)
    if given.action == "show":
        show(points, study.targets)
        return
    if given.action == "run":
        queued = queue(points, study.targets, share_out(given.jobs, os.cpu_count() or 1))
        print(f"{queued} experiments queued, {len(points)} in all", flush=True)
        start(given.jobs)
        wait(points, given.jobs)
    collect(given.name, study, points, done(points))
