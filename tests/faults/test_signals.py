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
from attune.runtime.errors import Stopped, reported
from attune.runtime.sealed import newest_whole

STEPS = 60
ADAPTER = "models/sft/adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small.make(tmp_path_factory.mktemp("signals"), 4 * STEPS)


def sft(folder: Path, name: str) -> Run:
    return start(folder, folder / f"{name}.txt", sys.executable, "-m", "stages.sft", env={"PYTHONPATH": str(ROOT)})


def made(folder: Path) -> dict[str, bytes]:
    curves = folder / "reports/curves/sft"
    files = [folder / ADAPTER, *sorted(curves.rglob("*.tsv"))]
    assert len(files) > 3
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(folder) -> dict[str, bytes]:
    run = sft(folder, "undisturbed")
    assert run.process.wait() == 0, run.output
    small.recorded_by_dvc(folder)
    return made(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_ends_training_with_a_checkpoint(number, name, folder, undisturbed):
    (folder / ADAPTER).unlink()
    run = sft(folder, name)
    assert run.wait_until(lambda: steps_seen(run.output) >= 3), run.output
    assert run.send(number) == 128 + number
    assert "Traceback" not in run.output
    said = re.findall(rf"stopped by {name}: step (\d+) of {STEPS} is kept", run.output.splitlines()[-1])
    (kept,) = (folder / ".checkpoints").glob("sft-*/")
    step = int(said[0])
    assert 3 <= step < STEPS and newest_whole(kept, "checkpoint") == kept / f"checkpoint-{step}"
    assert not (folder / ADAPTER).exists()
    again = sft(folder, f"{name}-again")
    assert again.process.wait() == 0, again.output
    assert f"checkpoint-{step}" in again.output
    assert made(folder) == undisturbed
    small.recorded_by_dvc(folder)


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
    with pytest.raises(Stopped, match="step 8 of 15 of c, epoch 2 is kept") as stopped:
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
