"""The environment of the ranks, and the message about a dead rank; test_ranks.py runs the launcher."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.distributed.elastic.multiprocessing import Std

from attune.config.params import check
from attune.runtime import launch
from attune.runtime.distributed import LOST
from attune.runtime.errors import ParamsError, UserError

ROOT = Path(__file__).parents[1]
ACCELERATE = sorted((ROOT / "conf/accelerate").glob("*.yaml"))


def hardware(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        values = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    return check(values, "conf").hardware


def test_one_machine_finds_a_free_port_by_itself(tmp_path):
    settings = launch.settings(hardware("hardware=multi_gpu"), tmp_path, {})
    assert (settings.min_nodes, settings.max_nodes, settings.nproc_per_node) == (1, 1, 4)
    assert (settings.rdzv_backend, settings.rdzv_endpoint, settings.max_restarts) == ("c10d", "localhost:0", 0)
    # Rank 0 has the terminal.
    assert settings.logs_specs._redirects == dict.fromkeys((1, 2, 3), Std.ALL)


@pytest.mark.parametrize(("environment", "rank"), [({}, 0), ({"NODE_RANK": "1"}, 1)])
def test_several_machines_meet_at_the_first(environment, rank, tmp_path):
    asked = hardware("hardware=cluster", "runtime.rendezvous=gpu-7:29500")
    settings = launch.settings(asked, tmp_path, environment)
    assert (settings.min_nodes, settings.max_nodes, settings.nproc_per_node) == (2, 2, 8)
    assert (settings.rdzv_backend, settings.rdzv_endpoint) == ("static", "gpu-7:29500")
    assert settings.rdzv_configs["rank"] == rank


@pytest.mark.parametrize("number", ["2", "-1", "first"])
def test_a_machine_that_is_none_of_them(number, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"NODE_RANK = {number!r}, but ranks.nodes = 2: it counts")):
        launch.settings(hardware("hardware=cluster"), tmp_path, {"NODE_RANK": number})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["hardware=multi_gpu", "ranks.nodes=2"], "runtime.rendezvous = None with ranks.nodes = 2: several"),
        (["hardware=cluster", "ranks.nodes=1"], "with ranks.nodes = 1: several machines meet at host:port"),
        (["hardware=cluster", "runtime.rendezvous=gpu-7"], "runtime.rendezvous = 'gpu-7': string should match"),
        (["ranks.accelerate=conf/accelerate/ddp.yaml"], "is for GPUs: null on a CPU"),
        (["hardware=cluster", "model.quantization=nf4"], "FSDP leaves 4-bit weights whole on every GPU; set ranks."),
    ],
)
def test_keys_that_do_not_go_together(override, message):
    with pytest.raises(ParamsError, match=re.escape(message)):
        hardware(*override)


def test_ranks_get_the_command_of_the_stage(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/stages/dpo.py", "e1"])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="stages.dpo")))
    assert launch.command() == ["-m", "stages.dpo", "e1"]


def test_a_rank_starts_no_ranks(monkeypatch):
    """As under `torchrun` or `accelerate launch` by hand."""
    monkeypatch.setenv("RANK", "0")
    ran = []
    launch.run(lambda: ran.append(1), replace(hardware(), processes=2))
    assert ran == [1]


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_configs(path):
    config = load_config_from_file(str(path))
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}
    assert config.distributed_type == kinds[path.stem] and config.mixed_precision == "no" and not config.use_cpu


EXPECTED = {
    "ddp": {},
    "fsdp": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
}


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_ranks_get_the_environment_of_accelerate_launch(path):
    made = launch.accelerate_environment(path, 8)
    assert made["ACCELERATE_MIXED_PRECISION"] == "no"
    assert EXPECTED[path.stem].items() <= made.items()
    sharded = {name for name in made if name.startswith(("FSDP_", "ACCELERATE_USE_"))}
    assert bool(sharded) is (path.stem != "ddp")


def test_a_config_of_deepspeed_is_refused_before_anything_starts(tmp_path):
    text = (ROOT / "conf/accelerate/ddp.yaml").read_text(encoding="utf-8").replace("MULTI_GPU", "DEEPSPEED")
    (tmp_path / "zero3.yaml").write_text(text + "deepspeed_config: {zero_stage: 3}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"is for DeepSpeed, .*: conf/accelerate/fsdp\.yaml shards"):
        launch.accelerate_environment(tmp_path / "zero3.yaml", 2)


def test_a_config_that_is_none(tmp_path):
    (tmp_path / "a.yaml").write_text("zero_stage: 3\n")
    for path in (tmp_path / "a.yaml", tmp_path / "missing.yaml"):
        with pytest.raises(UserError, match=r"ranks\.accelerate = .* cannot be read: "):
            launch.accelerate_environment(path, 2)


def test_more_ranks_than_gpus():
    with pytest.raises(UserError, match=r"ranks\.processes = 4, but 0 GPUs are visible"):
        launch.run(lambda: None, hardware("hardware=multi_gpu"))


def failure(local_rank, exitcode):
    return SimpleNamespace(local_rank=local_rank, exitcode=exitcode)


def test_what_is_said_of_ranks_that_died(tmp_path):
    log = tmp_path / "attune_x/attempt_0/1/stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("step 1\rstep 2\rstep 3\n\nerror: no memory\n", encoding="utf-8")
    said = launch.message({9: failure(1, 1)}, 16, tmp_path).splitlines()
    assert said == [
        f"rank 9 of 16 ended with exit status 1; {log} ends with",
        "  step 3",
        "  error: no memory",
        "the other ranks were stopped; the same command continues from the last checkpoint",
    ]
    first = launch.message({0: failure(0, 1)}, 2, tmp_path).splitlines()[0]
    assert first == "rank 0 of 2 ended with exit status 1; its output is above"


def test_the_rank_that_died_first_is_named_and_not_those_that_it_took_along(tmp_path):
    said = launch.message({0: failure(0, LOST), 1: failure(1, -9), 2: failure(2, -15)}, 3, tmp_path)
    assert re.findall(r"rank \d+", said) == ["rank 1"] and "was killed by SIGKILL" in said
    for taken_along in (-15, 128 + 15, LOST):
        said = launch.message({0: failure(0, taken_along), 1: failure(1, 1)}, 2, tmp_path)
        assert re.findall(r"rank \d+", said) == ["rank 1"]
    # An error that all ranks have is printed once.
    said = launch.message({number: failure(number, 1) for number in range(8)}, 8, tmp_path)
    assert said.startswith("rank 0 of 8 ended with exit status 1; its output is above\n")
