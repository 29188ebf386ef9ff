"""Stages `sft` and `dpo` under FSDP2, on two processes, give the results of a single process without it."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from faults.pipeline import Run, start, steps_seen
from helpers import ROOT
from ranks_run import run_stages
from safetensors.torch import load_file
from test_ranks import OVERRIDES, assert_same_metrics, history, make, rank_of

from attune.config.params import compose, load
from attune.models.loading import load_base
from attune.runtime.errors import UserError
from attune.runtime.launch import accelerate_environment

pytestmark = pytest.mark.slow

STAGES = ["sft@sft", "dpo@e1", "dpo@e2"]
RELATIVE = 1e-4


def launched(folder: Path, log: str, *stages: str) -> Run:
    env = accelerate_environment(ROOT / "conf/accelerate/fsdp.yaml", 2) | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "ACCELERATE_TORCH_DEVICE": "cpu",
    }
    return start(folder, folder / f"{log}.txt", sys.executable, "-m", "fsdp_run", *stages, env=env)


def with_own_head(folder: Path) -> None:
    """The tiny model's head gets weights of its own, as those of large models have: FSDP shards it by itself."""
    import torch

    model = load_base(folder / "models/base", load(folder / "params.yaml").hardware)
    model.config.tie_word_embeddings = False
    torch.manual_seed(5)
    model.lm_head.weight = torch.nn.Parameter(0.02 * torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder / "models/base")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A project run in a single process, and one run under FSDP after a rank was killed."""
    one = make(tmp_path_factory.mktemp("one"))
    two = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(one)
        with_own_head(one)
        shutil.copytree(one, two, dirs_exist_ok=True)
        run_stages(STAGES, load())
        patch.chdir(two)
        compose([*OVERRIDES, "ranks.processes=2"])
    killed = launched(two, "killed", "sft@sft")
    assert killed.wait_until(lambda: steps_seen(killed.output) >= 7), killed.output
    os.kill(rank_of(killed.process.pid, 1), signal.SIGKILL)
    assert killed.process.wait() == 1, killed.output
    run = launched(two, "two", *STAGES)
    assert run.process.wait() == 0, run.output
    assert "resuming from" in run.output
    return one, two


@pytest.mark.parametrize("stage", ["sft-sft", "dpo-e1", "dpo-e2"])
def test_same_losses(folders, stage):
    one, two = (history(folder, stage) for folder in folders)
    assert_same_metrics(one, two, RELATIVE)


@pytest.mark.parametrize("name", ["sft", "dpo/e1", "dpo/e2"])
def test_the_adapter_is_saved_whole(folders, name):
    one, two = (load_file(folder / "models" / name / "adapter_model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for key, weights in one.items():
        assert (weights - two[key]).norm() <= 10 * RELATIVE * weights.norm(), key


def test_a_round_is_not_continued_in_another_form(folders, monkeypatch):
    one, two = folders
    monkeypatch.chdir(two)
    # A round of FSDP, continued in one process.
    compose(OVERRIDES)
    with pytest.raises(UserError, match=r"models/dpo/e1 was trained with FSDP and would be continued without it"):
        run_stages(["dpo@e2"], load())
    # And the reverse.
    shutil.rmtree(two / "models/dpo/e1")
    shutil.copytree(one / "models/dpo/e1", two / "models/dpo/e1")
    compose([*OVERRIDES, "ranks.processes=2"])
    run = launched(two, "mixed", "dpo@e2")
    assert run.process.wait() == 1
    assert "models/dpo/e1 was trained without FSDP and would be continued with it" in run.output
