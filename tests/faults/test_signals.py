"""SIGTERM and Ctrl-C end a training with a checkpoint of the step that was reached, and nothing is lost."""

import re
import signal
import sys
from pathlib import Path

import factory
import pytest
import small
import torch
from helpers import ROOT
from pipeline import Run, start, steps_seen

from attune.classifiers.common.fit import fit
from attune.config.params import load
from attune.runtime.errors import Stopped, reported
from attune.runtime.sealed import newest_whole
from stages import sft as sft_stage

STEPS = 60
ADAPTER = "models/sft/adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small.make(tmp_path_factory.mktemp("signals"), 4 * STEPS)


def sft(folder: Path, name: str) -> Run:
    command = (sys.executable, "-m", "stages.sft", "sft")
    return start(folder, folder / f"{name}.txt", *command, env={"PYTHONPATH": str(ROOT)})


def written(folder: Path) -> dict[str, bytes]:
    curves = folder / "reports/curves/sft"
    files = [folder / ADAPTER, *sorted(curves.rglob("*.tsv"))]
    assert len(files) > 3
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(folder) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sft_stage.main("sft", load())
    small.recorded_by_dvc(folder)
    return written(folder)


def stopped(folder: Path, number: signal.Signals, after: int) -> int:
    """Train in a process that gets the signal after step `after`; the step of the checkpoint that it leaves."""
    run = sft(folder, number.name)
    assert run.wait_until(lambda: steps_seen(run.output) >= after), run.output
    assert run.send(number) == 128 + number
    assert "Traceback" not in run.output
    (step,) = re.findall(rf"stopped by {number.name}: step (\d+) of {STEPS} is saved", run.output.splitlines()[-1])
    (checkpoints,) = (folder / ".checkpoints").glob("sft-*/")
    assert newest_whole(checkpoints, "checkpoint") == checkpoints / f"checkpoint-{step}"
    assert not (folder / ADAPTER).exists()
    return int(step)


@pytest.mark.slow
def test_signals_end_training_with_a_checkpoint(folder, undisturbed):
    (folder / ADAPTER).unlink()
    first = stopped(folder, signal.SIGTERM, 3)
    second = stopped(folder, signal.SIGINT, first + 3)
    assert 3 <= first < second < STEPS
    last = sft(folder, "last")
    assert last.process.wait() == 0, last.output
    assert f"checkpoint-{second}" in last.output
    assert written(folder) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_training_of_a_classifier_with_a_checkpoint(number, tmp_path):
    hardware = factory.hardware(save_every=500)

    def train(folder: Path, raised_at: int | None) -> torch.Tensor:
        torch.manual_seed(1)
        model, data = torch.nn.Linear(3, 1), torch.randn(20, 3)
        calls = []

        def loss(batch: list[int]) -> torch.Tensor:
            calls.append(batch)
            if len(calls) == raised_at:
                signal.raise_signal(number)
            return torch.nn.functional.dropout(model(data[batch]), 0.5).square().mean()

        settings = {"epochs": 3, "batch_size": 4, "hardware": hardware, "seed": "1:c", "checkpoint": folder}
        fit(model, [(list(model.parameters()), 0.1)], [1] * 20, loss, **settings)
        return model.weight.detach().clone()

    whole = train(tmp_path / "whole", None)
    with pytest.raises(Stopped, match="step 8 of 15 of c, epoch 2 is saved") as stopped:
        train(tmp_path / "cut", 8)
    assert stopped.value.number == number
    assert newest_whole(tmp_path / "cut", "step") == tmp_path / "cut/step-8"
    assert torch.equal(train(tmp_path / "cut", None), whole)


def test_a_signal_outside_of_training_is_one_line_and_its_exit_code(capsys):
    # A shell has the commands that it runs in the background ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")):
        own = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended, reported():
            signal.raise_signal(number)
        assert ended.value.code == 128 + number and capsys.readouterr().err == f"stopped by {name}\n"
        assert signal.getsignal(signal.SIGTERM) == own
    signal.signal(signal.SIGINT, before)
