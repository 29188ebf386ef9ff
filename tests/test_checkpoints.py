"""A killed stage finds its checkpoints again, a changed one does not, and two writers never meet."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT

from attune.runtime.checkpoints import checkpoints
from attune.runtime.errors import UserError

PIPELINE = """
stages:
  sft: {cmd: x, deps: [code], params: [sft], outs: [models/sft]}
  dpo:
    foreach: ${rounds}
    do:
      {cmd: x, deps: [code, "pairs/${key}", "${item.init}"], params: [dpo, "rounds.${key}"], outs: ["models/${key}"]}
"""
ROUNDS = {"e1": SimpleNamespace(init="models/sft"), "e2": SimpleNamespace(init="models/dpo/e1")}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    for name in ("code/a.py", "pairs/e1", "pairs/e2", "models/sft/weights", "elsewhere.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("1")


def params(beta=0.1, epochs=1):
    return SimpleNamespace(rounds=ROUNDS, dpo={"beta": beta}, sft={"epochs": epochs})


def killed(stage="dpo@e1", **changes) -> Path:
    with pytest.raises(KeyboardInterrupt), checkpoints(stage, params(**changes)) as folder:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt
    return folder


def test_a_killed_stage_finds_its_checkpoints():
    folder = killed()
    with checkpoints("dpo@e1", params()) as again:
        assert again == folder and (again / "checkpoint").read_text() == "half"


@pytest.mark.parametrize("edit", ["elsewhere.py", "pairs/e2", "code/__pycache__/a.pyc"])
def test_an_edit_elsewhere_loses_no_checkpoint(edit):
    """Of code that the stage does not depend on, another round's pairs, compiled files; and another stage's params."""
    folder = killed()
    Path(edit).parent.mkdir(parents=True, exist_ok=True)
    Path(edit).write_text("2")
    with checkpoints("dpo@e1", params(epochs=2)) as again:
        assert again == folder


@pytest.mark.parametrize("change", ["beta", "code/a.py", "code/new.py", "pairs/e1", "models/sft/weights", "dpo@e2"])
def test_a_changed_stage_starts_from_the_beginning(change):
    folder = killed()
    if "/" in change:
        Path(change).write_text("2")
    stage, beta = ("dpo@e2" if change == "dpo@e2" else "dpo@e1"), (0.2 if change == "beta" else 0.1)
    with checkpoints(stage, params(beta=beta)) as other:
        assert other != folder and not list(other.iterdir())


def test_checkpoints_are_kept_until_dvc_has_recorded_the_stage():
    """A kill while DVC hashes the outs costs nothing; a recorded stage that runs again starts from the beginning."""
    with checkpoints("sft", params()) as folder:
        (folder / "checkpoint").write_text("whole")
    with checkpoints("sft", params()) as again:
        assert (again / "checkpoint").read_text() == "whole"
    os.utime(folder / ".done", (1, 1))
    Path("dvc.lock").write_text("recorded")
    with checkpoints("dpo@e1", params()):
        assert not folder.exists()
    with checkpoints("sft", params()) as again:
        assert not list(again.iterdir())


def test_a_stage_that_is_not_in_the_pipeline():
    with pytest.raises(UserError, match=r"^dvc\.yaml has no stage 'rlhf': sft, dpo$"), checkpoints("rlhf", params()):
        pass


def test_a_second_process_is_refused():
    script = (
        "from types import SimpleNamespace; from attune.runtime.checkpoints import checkpoints\n"
        "with checkpoints('sft', SimpleNamespace(sft={'epochs': 1})): print('in')\n"
    )
    run = {"env": {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True, "check": False}
    with checkpoints("sft", params()):
        second = subprocess.run([sys.executable, "-c", script], **run)
        assert second.returncode and f"stage sft is running in process {os.getpid()}, which holds" in second.stderr
        with pytest.raises(UserError, match=f"process {os.getpid()}, "), checkpoints("sft", params()):
            pass
    assert subprocess.run([sys.executable, "-c", script], **run).stdout == "in\n"


def test_the_environment_may_name_a_folder_that_outlives_a_job(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTUNE_CHECKPOINTS", str(tmp_path / "shared/table1-13"))
    folder = killed()
    assert folder.parent == tmp_path / "shared/table1-13" and killed() == folder
    assert not Path(".checkpoints").exists()
