"""DVC's own files, cut short by a kill while DVC wrote them, are put right, and nothing that was made is made again."""

import shutil
import subprocess
from pathlib import Path

import pytest
from pipeline import environment

from attune.runtime.errors import UserError
from attune.tools.restore import LOCK, RWLOCK, cut_short, restore

PIPELINE = """
stages:
  one:
    cmd: echo ran >> ran.txt && cp a.txt b.txt
    deps: [a.txt]
    outs: [b.txt]
"""


def command(*words: str) -> str:
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A project with a stage that has run, whose lock is committed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("dvc.yaml").write_text(PIPELINE)
        Path("a.txt").write_text("one")
        command("git", "init", "-q")
        command("dvc", "init", "-q")
        command("dvc", "repro", "-q")
        command("git", "add", "-A")
        command("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "one")
    return folder


@pytest.fixture
def project(whole, tmp_path, monkeypatch) -> Path:
    """A copy of it, to work in."""
    folder = tmp_path / "project"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    return folder


def test_whole_files_are_left_alone(project):
    before = LOCK.read_bytes()
    assert restore() == [] and LOCK.read_bytes() == before


def test_a_lock_that_ends_anywhere_is_put_back_or_says_a_part_of_what_it_said(project):
    content = LOCK.read_bytes()
    refused = 0
    for end in range(len(content)):
        LOCK.write_bytes(content[:end])
        if cut_short(LOCK):
            refused += 1
            assert restore() == [f"{LOCK} was cut short by a kill: put back as it was committed"]
            assert LOCK.read_bytes() == content
    assert refused > 0.3 * len(content)


@pytest.mark.parametrize("committed", [True, False])
def test_a_stage_that_has_run_is_not_run_again(committed, project):
    Path("a.txt").write_text("two")
    command("dvc", "repro", "-q")
    LOCK.write_bytes(b"")
    RWLOCK.write_text('{"read": {"a.t')
    if not committed:
        shutil.rmtree(".git")
        Path(".dvc/config").write_text("[core]\n    no_scm = True\n")
    assert len(restore()) == 2 and not RWLOCK.exists() and LOCK.exists() == committed
    Path("ran.txt").unlink()
    command("dvc", "repro", "-q")
    assert not Path("ran.txt").exists() and Path("b.txt").read_text() == "two"


def test_a_lock_that_dvc_is_writing_is_left_alone(project):
    from dvc.repo import Repo

    LOCK.write_bytes(b"")
    with Repo().lock, pytest.raises(UserError, match="DVC is at work here: wait for it, or end it"):
        restore()
    assert LOCK.read_bytes() == b""
