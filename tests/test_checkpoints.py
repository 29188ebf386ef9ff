"""A killed stage finds its checkpoints again, a changed one does not, and two writers never meet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attune.runtime.checkpoints import checkpoints
from attune.runtime.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("code").mkdir()
    Path("code/a.py").write_text("1")


def killed(params: object) -> Path:
    with pytest.raises(KeyboardInterrupt), checkpoints("dpo@e1", params, [Path("code")]) as folder:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt
    return folder


def test_killed_stage_finds_its_checkpoints():
    folder = killed({"beta": 0.1})
    with checkpoints("dpo@e1", {"beta": 0.1}, [Path("code")]) as again:
        assert again == folder and (again / "checkpoint").read_text() == "half"


def test_checkpoints_are_kept_until_dvc_has_recorded_the_stage():
    """A kill while DVC hashes the outs costs nothing; what is recorded and runs again begins anew."""
    with checkpoints("sft", 1, [Path("code")]) as folder:
        (folder / "checkpoint").write_text("whole")
    with checkpoints("sft", 1, [Path("code")]) as again:
        assert (again / "checkpoint").read_text() == "whole"
    os.utime(folder / ".done", (1, 1))
    Path("dvc.lock").write_text("recorded")
    with checkpoints("dpo", 1, [Path("code")]):
        assert not folder.exists()
    with checkpoints("sft", 1, [Path("code")]) as again:
        assert not list(again.iterdir())


@pytest.mark.parametrize("change", ["params", "content", "new file", "stage"])
def test_changed_stage_starts_anew(change):
    folder = killed({"beta": 0.1})
    if change == "content":
        Path("code/a.py").write_text("2")
    if change == "new file":
        Path("code/b.py").write_text("1")
    name, params = ("dpo@e2" if change == "stage" else "dpo@e1"), {"beta": 0.2 if change == "params" else 0.1}
    with checkpoints(name, params, [Path("code")]) as other:
        assert other != folder and not list(other.iterdir())


def test_compiled_files_do_not_count():
    folder = killed({})
    Path("code/__pycache__").mkdir()
    Path("code/__pycache__/a.pyc").write_text("x")
    with checkpoints("dpo@e1", {}, [Path("code")]) as again:
        assert again == folder


def test_second_process_is_refused():
    root = Path(__file__).parents[1]
    script = (
        "from pathlib import Path; from attune.runtime.checkpoints import checkpoints\n"
        "with checkpoints('sft', 1, [Path('code')]): print('in')\n"
    )
    with checkpoints("sft", 1, [Path("code")]):
        second = subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
        )
        assert second.returncode and f"stage sft is running in process {os.getpid()}, which holds" in second.stderr
        with pytest.raises(UserError, match=f"process {os.getpid()}, "), checkpoints("sft", 1, [Path("code")]):
            pass
    third = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert third.stdout == "in\n"
