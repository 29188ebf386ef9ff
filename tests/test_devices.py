"""A GPU for each process, checked by the locks alone, so no GPU is needed; and the precision that a processor gets."""

import os
import subprocess
import sys

import factory
import pytest
import torch

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


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx2": True}, "fp32"),
        ({"avx512_f": True, "avx512_vnni": True}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
    ],
)
def test_auto_is_bf16_where_the_processor_multiplies_in_it(capabilities, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert factory.hardware(dtype="auto").precision == precision
    assert factory.hardware(dtype="fp32").precision == "fp32"
    assert factory.hardware(dtype="auto", device="cuda").precision == "bf16"


def test_torch_knows_the_instructions_asked_for_by_these_names():
    """The keys asked for are among those that torch has here: a key that it renamed would always be missing."""
    known = torch.cpu.get_capabilities()
    assert {"avx512_bf16", "amx_bf16"} <= set(known) or known["architecture"] != "x86_64"
