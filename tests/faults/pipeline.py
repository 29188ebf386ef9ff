"""The embedded pipeline, very small, as `dvc repro` in a separate process group that can be killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT, project

# What a person takes from a run; the pages of the report are made of these.
RESULTS = ("models", "data", "metrics", "reports/curves")
RUNNING = re.compile(r"Running stage '([^']+)'")
POLL = 0.005


def make(folder: Path, overrides: list[str]) -> Path:
    """A project that DVC runs: code, data and params, without Git."""
    project(folder)
    for name in ("attune", "stages", "data/sample", "data/prompts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("*.csv", "*.yaml"):
        for table in (ROOT / "data").glob(pattern):
            shutil.copy(table, folder / "data")
    command(folder, sys.executable, "-m", "attune", "params", *overrides)
    return folder


def environment() -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    # A test's own folder of modules would shadow the copy's.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return inherited | {"PATH": scripts + os.pathsep + os.environ["PATH"], "OMP_NUM_THREADS": "1"}


def command(folder: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


@dataclass
class Run:
    """A command in a separate process group, whose output goes to a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def going(self) -> bool:
        return self.process.poll() is None

    def wait_until(self, seen: Callable[[], bool], poll: float = POLL) -> bool:
        """Whether `seen` came true before the command ended; asked every `poll` seconds."""
        while self.going:
            if seen():
                return True
            time.sleep(poll)
        return False

    def send(self, number: int) -> int:
        """Send a signal to the whole group and wait for its end; returns the exit status."""
        if self.going:
            os.killpg(self.process.pid, number)
        return self.process.wait()

    def kill(self) -> bool:
        """SIGKILL to the whole group; whether it was still running."""
        return self.send(signal.SIGKILL) == -signal.SIGKILL

    def stage(self) -> str:
        """The stage that the output names last."""
        return (RUNNING.findall(self.output) or ["before the first stage"])[-1]


def start(folder: Path, log: Path, *words: str, env: dict[str, str] | None = None) -> Run:
    env = environment() | (env or {})
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Run(process, log)


def repro(folder: Path, log: Path, *targets: str) -> Run:
    """`dvc repro` of the targets, or of all stages.

    Before, those of DVC's own files that a kill cut short are removed, which it refuses to read: DVC 3.67 rewrites
    `dvc.lock` and `.dvc/tmp/rwlock` in place. What stages made stays in its run cache.
    """
    for path in (folder / "dvc.lock", folder / ".dvc/tmp/rwlock"):
        if path.exists() and not readable(path):
            path.unlink()
    return start(folder, log, "dvc", "repro", *targets)


def readable(path: Path) -> bool:
    """Whether DVC can read its file."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML, YAMLError
    from voluptuous import Invalid

    try:
        # JSON is YAML.
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        if path.suffix == ".lock":
            COMPILED_LOCKFILE_SCHEMA(content)
    except (Invalid, YAMLError, UnicodeDecodeError):
        return False
    return content is not None


def results(folder: Path, stages: Iterable[str]) -> dict[str, bytes]:
    """Every file of a run's results, the outs that DVC has recorded of the stages, by its path."""
    from ruamel.yaml import YAML

    recorded = YAML(typ="safe").load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    outs = [folder / out["path"] for name in stages for out in recorded[name].get("outs", ())]
    outs = [out for out in outs if str(out.relative_to(folder)).startswith(RESULTS)]
    paths = [path for out in outs for path in [out, *out.rglob("*")] if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def steps_seen(output: str) -> int:
    """The optimizer step that training has reached in the last stage of the output: its bar has no name before it."""
    bars = re.findall(r"(?:^|[\r\n])\s*\d+%\|[^|]*\| (\d+)/\d+ \[", output[max(output.rfind("Running stage"), 0) :])
    return int(bars[-1]) if bars else 0


def steps_by_stage(output: str) -> dict[str, int]:
    """The steps of each stage that an output names."""
    begins = [match.start() for match in RUNNING.finditer(output)]
    parts = [output[at:end] for at, end in zip(begins, [*begins[1:], len(output)], strict=True)]
    return {RUNNING.findall(part)[0]: steps_seen(part) for part in parts}
