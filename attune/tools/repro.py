"""Run the stages that have changed, as `dvc repro`, with a line before each: its number, the time so far and the rest.

    python -m attune repro                       # all stages: what `make repro` runs
    python -m attune repro evaluate@sft          # a stage and what it depends on
    python -m attune repro -- --force dpo@e1     # options of `dvc repro` stand after --
    python -m attune repro -- --dry              # lists what would run, and why

    [12/35] generate@sft · 3 min 10 s so far · about 4 min left

What else is printed comes from DVC and the stages, and the exit status is DVC's. The time left is that of all stages
that may still run: those that differ from dvc.lock, and those that depend on a stage that ran. A stage is expected to
take as long as in its last run by this command with the same model, corpus, encoder and device, scaled by epochs,
pairs, replies and questions (`.cache/stage_times.json`). Before that, with the embedded corpus and SmolLM2, it is
expected to take as long as on another machine, corrected by the speed of this one. Ctrl-C and SIGTERM end the running
stage, which keeps its checkpoint, and then DVC. `--dry --allow-missing` also lists in a clone that has no data
(attune/tools/dry_run.py).
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from attune.config.params import load
from attune.config.schema import Params
from attune.generation import made_elsewhere
from attune.runtime.cli import command_parser
from attune.runtime.errors import Stopped
from attune.runtime.imports import import_for_good
from attune.tools.dry_run import listed, would_run
from attune.tools.stage_times import Time, here, in_words, kind, read_times, rounded, time_of, write_times

RUNNING = "Running stage '%s':"
"""What DVC 3.67 logs before it runs the command of a stage."""
RESTORED = "Stage '%s' is cached - skipping run, checking out outputs"
SKIPPED = "Stage '%s' didn't change, skipping"
# Seconds of the stages of the default run by their kinds: `make repro` at commit 7377938 (AMD EPYC, 2 cores).
TYPICAL: dict[str, float] = {
    "download": 1, "prepare": 2, "base": 14, "sft": 109, "pairs": 2, "audit": 2, "dpo": 58, "generate": 34,
    "classifier": 33, "references": 9, "evaluate": 7, "scores": 6, "intervals": 2, "mmlu": 14, "card": 2, "report": 4,
}  # fmt: skip
# After so many seconds the speed of this machine is known well enough to correct those of `TYPICAL` by it.
WARM = 30


@dataclass(frozen=True)
class Plan:
    """The stages that DVC will look at, in its order, each with those that it depends on; and those that changed."""

    needs: dict[str, set[str]]
    changed: set[str]


class Progress(logging.Handler):
    """Prints a line where DVC logs that it begins a stage, and keeps how long each stage took."""

    def __init__(self, plan: Plan, typical: dict[str, float], times: dict[str, Time], params: Params) -> None:
        super().__init__()
        self.plan, self.typical, self.times, self.params = plan, typical, times, params
        self.started = self.begun = time.monotonic()
        self.seen: list[str] = []
        self.ran: set[str] = set()
        self.running: str | None = None
        # Of the stages that have ended, seconds that they took and those of `typical`.
        self.taken = self.supposed = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Note that a stage begins, and so that the one before has ended."""
        if record.msg not in (RUNNING, RESTORED, SKIPPED) or not isinstance(record.args, tuple):
            return
        self.end()
        name = str(record.args[0])
        self.seen.append(name)
        if record.msg != SKIPPED:
            self.ran.add(name)
        if record.msg == RUNNING:
            self.running, self.begun = name, time.monotonic()
            print(self.line(self.begun - self.started), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Keep the time of the running stage, which has ended well."""
        if self.running is None:
            return
        took = time.monotonic() - self.begun
        if self.known(self.running) is None:
            self.taken, self.supposed = self.taken + took, self.supposed + self.typical.get(kind(self.running), took)
        self.times[self.running] = time_of(self.running, round(took, 1), self.params, here)
        self.running = None
        write_times(self.times)

    def line(self, so_far: float) -> str:
        """The line of the stage that begins, `so_far` seconds after the start."""
        expected = [self.expected(name) for name in self.to_run()]
        left = sum(seconds for seconds in expected if seconds is not None)
        parts = [f"[{len(self.seen)}/{len(self.plan.needs)}] {self.seen[-1]}", f"{in_words(so_far)} so far"]
        if left:
            parts.append(f"{'at least' if None in expected else 'about'} {in_words(rounded(left))} left")
        return " · ".join(parts)

    def to_run(self) -> list[str]:
        """The stage that begins and those that may run after it."""
        names, ran = [self.seen[-1]], set(self.ran)
        for name, needed in self.plan.needs.items():
            if name not in self.seen and (name in self.plan.changed or needed & ran):
                names.append(name)
                ran.add(name)
        return names

    def expected(self, name: str) -> float | None:
        """Seconds that a stage will take; None if nothing is known."""
        if (seconds := self.known(name)) is not None:
            return seconds
        pace = self.taken / self.supposed if self.supposed >= WARM else 1.0
        return self.typical[kind(name)] * pace if kind(name) in self.typical else None

    def known(self, name: str) -> float | None:
        """Seconds of a stage by its last run; None before that, or if that was of another kind."""
        return self.times[name].expected(name, self.params) if name in self.times else None


def plan(arguments: Any) -> Plan:
    """What `dvc repro` with these parsed arguments will look at.

    Raises:
        DvcException: DVC refuses the pipeline or a target.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        graph, stages = looked_at(repo, arguments)
        needs = {stage.addressing: {needed.addressing for needed in graph.successors(stage)} for stage in stages}
        # `repo.status` would read the pipeline again.
        with repo.lock:
            return Plan(needs, {stage.addressing for stage in stages if arguments.force or stage.changed()})


def looked_at(repo: Any, arguments: Any) -> tuple[Any, list[Any]]:
    """The graph of all stages, and those that `dvc repro` looks at, in its order."""
    from dvc.dvcfile import PROJECT_FILE
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    graph = get_active_graph(repo.index.graph)
    if arguments.targets:
        stages = collect_stages(repo, arguments.targets, arguments.recursive, arguments.glob)
    else:
        # DVC's `collect_stages` would read the pipeline again.
        stages = [stage for stage in graph if stage.path_in_repo == PROJECT_FILE and not arguments.all_pipelines]
    if not arguments.single_item:
        stages = plan_repro(graph, stages, arguments.pipeline, arguments.downstream)
    return graph, stages


def dry(arguments: Any) -> str:
    """What `dvc repro` with these parsed arguments would run, and why.

    Raises:
        DvcException: DVC refuses the pipeline or a target.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        graph, stages = looked_at(repo, arguments)
        if arguments.force:
            return listed({stage.addressing: ["--force"] for stage in stages}, len(stages))
        return listed(would_run(stages, graph, arguments.allow_missing), len(stages))


def progress(argv: Sequence[str]) -> Progress | None:
    """The progress of `dvc` with these arguments; None where it will say itself what is wrong. Ends after `--dry`.

    Raises:
        DataError: a file of replies is broken, which its stage would find after the training of others.
    """
    from dvc.cli import DvcParserError, parse_args
    from dvc.exceptions import DvcException

    try:
        arguments = parse_args(argv)
        if arguments.dry:
            print(dry(arguments))
            sys.exit()
        planned = plan(arguments)
    except DvcParserError:
        # It has been said; the status is that of `dvc`.
        sys.exit(254)
    except DvcException:
        return None
    params = load()
    for variant in params.variants.values():
        if variant.replies_file:
            made_elsewhere.read(variant.replies_file)
    default = (params.model.name, params.corpus.local_dir) == ("smollm2", "data/sample")
    return Progress(planned, TYPICAL if default else {}, read_times(), params)


def stage_processes() -> Iterator[Any]:
    """The stage that DVC runs in this process: its child, or the child of a shell that waits for it."""
    import psutil

    for child in psutil.Process().children():
        yield from child.children() if child.cmdline()[-2:-1] == ["-c"] else [child]


def pass_on(number: int, _: FrameType | None) -> None:
    """Send a signal to the running stage; DVC ends after it. Without a stage, end DVC."""
    stages = list(stage_processes())
    if not stages:
        raise Stopped(number)
    for stage in stages:
        stage.send_signal(number)


def main(argv: Sequence[str]) -> None:
    """Run DVC in this process, so that the stages have this command's terminal; exit with its status."""
    parser = command_parser("repro", __doc__)
    parser.add_argument("arguments", nargs="*", help="targets of `dvc repro`; its options after --")
    command = ["repro", *parser.parse_args(argv).arguments]
    import_for_good("dvc.cli", "dvc.repo.reproduce")
    from dvc.cli import main as run_dvc

    shown = progress(command)
    if shown is not None and not shown.plan.changed:
        # DVC would read the whole pipeline again to say the same.
        print("Data and pipelines are up to date.")
        return
    if shown is not None:
        logging.getLogger("dvc.stage").addHandler(shown)
    # Ctrl-C reaches the stage by itself: it is in the foreground of the same terminal.
    signal.signal(signal.SIGTERM, pass_on)
    status = run_dvc(command)
    if shown is not None and status == 0:
        shown.end()
    sys.exit(status)
