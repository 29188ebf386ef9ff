"""The embedded pipeline, very small: it runs once in a session of pytest, and tests that change it get a copy."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from faults.pipeline import RUNNING, environment, start, steps_by_stage
from filelock import FileLock
from helpers import ROOT

# Two variants and two rounds: the fewest stages in which every kind of stage of the default recipe has a part, and 20
# to 60 steps in each that trains. A composition can drop a key of a dictionary only by Hydra's deletion: the third
# round goes. Replies are drawn: greedy, so small a model says nothing at all.
MICRO = [
    "model=tiny", "encoder=tiny", "tiny.corpus=sample",
    "tiny.vocab_size=600", "tiny.hidden_size=32", "tiny.intermediate_size=64", "tiny.layers=1",
    "tiny.heads=2", "tiny.epochs=0.2", "tiny.batch_size=8", "tiny.max_length=128", "lora.r=4", "sft.epochs=1",
    "sft.batch_size=32", "sft.max_length=64", "pairs.limit=160", "dpo.batch_size=8", "dpo.max_length=128",
    "~rounds.e3", "~variants.sft", "variants.sft-dpo.model=models/dpo/e2",
    "generate.limit=32", "generate.max_new_tokens=8", "generate.do_sample=true",
    "epitome.epochs=1", "epitome.max_length=16", "epitome.batch_size=16", "mmlu.limit=2", "mmlu.shots=1",
    "evaluate.resamples=100", "compute.threads=1", "compute.dtype=fp32", "runtime.save_every=5",
]  # fmt: skip
IDENTITY = {f"GIT_{role}_{key}": "a@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}


class Clone:
    """A clone of the working tree, with Git and DVC set up as a user's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_the_working_tree(cls, folder: Path) -> "Clone":
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
        for name in listed:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / "dvc.lock").unlink(missing_ok=True)
        made = cls(folder)
        made.run("git", "init", "-q")
        made.commit("start")
        return made

    def run(self, *command: str, ok: bool = True) -> str:
        env = environment() | IDENTITY | {"GIT_CONFIG_GLOBAL": os.devnull}
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)
        assert (done.returncode == 0) is ok, (
            f"{command}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout + done.stderr

    def on_another_machine(self, folder: Path) -> "Clone":
        """The files of a `git clone` of the commit."""
        self.run("git", "clone", "-q", ".", str(folder))
        return Clone(folder)

    def copy(self, folder: Path) -> "Clone":
        """The same with its own cache."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Clone(folder)

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "--allow-empty", "-m", message)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


def stages_run(output: str) -> list[str]:
    """The stages that DVC ran, by its output."""
    return RUNNING.findall(output)


@dataclass(frozen=True)
class Undisturbed:
    """A run of the pipeline that is committed, which tests copy and do not change.

    Its stages in their order, the seconds at which they began and the last ended, and their optimizer steps.
    """

    clone: Clone
    order: list[str]
    began: list[float]
    steps: dict[str, int]

    def seconds(self, stage: str) -> float:
        at = self.order.index(stage)
        return self.began[at + 1] - self.began[at]


def shared(root: Path) -> Undisturbed:
    """The run of this session below `root`, made by the process that asks first; the others wait."""
    folder, record = root / "micro", root / "micro.json"
    with FileLock(root / "micro.lock"):
        if not record.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            record.write_text(json.dumps(make(folder)))
    return Undisturbed(Clone(folder), **json.loads(record.read_text()))


def make(folder: Path) -> dict[str, object]:
    """Run the pipeline in a clone and commit it; the fields of `Undisturbed`."""
    made = Clone.of_the_working_tree(folder)
    made.run(sys.executable, "-m", "attune", "params", *MICRO)
    run = start(folder, folder.with_suffix(".txt"), sys.executable, "-m", "attune", "repro")
    order, began = [], []

    def note() -> bool:
        for stage in RUNNING.findall(run.output)[len(order) :]:
            order.append(stage)
            began.append(time.monotonic())
        return False

    run.wait_until(note, 0.05)
    note()
    assert run.process.returncode == 0, run.output[-4000:]
    ended = time.monotonic()
    made.commit("run")
    return {"order": order, "began": [*began, ended], "steps": steps_by_stage(run.output)}
