"""A GPU for each process: which process gets which, checked by the locks alone, so no GPU is needed."""

import os
import subprocess
import sys

import pytest

from attune.runtime import devices
from attune.runtime.devices import VISIBLE, keep_to_one_device

HOLD = """
import sys
from pathlib import Path
from attune.runtime.devices import take_device
print(take_device(["0", "1", "GPU-2f"], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def none_held(monkeypatch):
    monkeypatch.setattr(devices, "_held", [])
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_processes_side_by_side_take_each_their_own_and_one_that_was_killed_gives_its_own_back(tmp_path):
    held = [holder(tmp_path) for _ in range(4)]
    assert [device for _, device in held] == ["0", "1", "GPU-2f", "0"]
    second, _ = held[1]
    second.kill()
    second.wait()
    another, device = holder(tmp_path)
    assert device == "1"
    for process in (another, *(process for process, _ in held)):
        process.kill()
        process.communicate()


def test_of_the_gpus_that_are_named_one_stays_visible(none_held, monkeypatch):
    monkeypatch.setenv(VISIBLE, "9001,9002")
    keep_to_one_device()
    assert os.environ[VISIBLE] == "9001"
    # Asked again, by the next model that the process loads, it keeps to it.
    monkeypatch.setenv(VISIBLE, "9001,9002")
    keep_to_one_device()
    assert os.environ[VISIBLE] == "9001,9002"


def test_a_rank_sees_all_of_them(none_held, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(VISIBLE, "9001,9002")
    keep_to_one_device()
    assert os.environ[VISIBLE] == "9001,9002" and devices._held == []


def test_one_gpu_is_not_locked(none_held, monkeypatch):
    monkeypatch.setenv(VISIBLE, "9001")
    keep_to_one_device()
    assert os.environ[VISIBLE] == "9001" and devices._held == []
