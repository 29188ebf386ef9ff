"""The cluster examples: they parse, name existing stages and keys, and have no path of a machine."""

import re
import shutil
import subprocess

import pytest
from helpers import ROOT, project
from ruamel.yaml import YAML

from attune.runtime.launch import SHUTDOWN
from attune.tools.memory.disk import disk
from attune.tools.memory.estimate import composed, shape
from attune.tools.memory.sizes import size

TEXTS = {".yaml", ".sh", ".jsonl", ".json", ".csv", ""}
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*") if path.suffix in TEXTS and path.is_file())
# Of sbatch and of SkyPilot's task, those that an example may use.
SBATCH = {"job-name", "array", "nodes", "ntasks", "gpus-per-node", "cpus-per-task", "mem", "time", "signal", "output"}
TASK = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run", "config"}
RESOURCES = {"infra", "accelerators", "cpus", "memory", "disk_size", "use_spot", "autostop", "any_of", "image_id"}


def skypilot():
    return YAML(typ="safe").load((ROOT / "examples/skypilot.yaml").read_text(encoding="utf-8"))


def scripts():
    task = skypilot()
    return {
        "slurm.sh": (ROOT / "examples/slurm.sh").read_text(encoding="utf-8"),
        "skypilot.yaml setup": task["setup"],
        "skypilot.yaml run": task["run"],
    }


@pytest.mark.parametrize("name", scripts())
def test_a_script_parses_stops_at_the_first_error_and_runs_what_there_is(name):
    text = scripts()[name]
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^set -eu", text, flags=re.MULTILINE)
    commands = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for module in re.findall(r"python -m (stages\.\w+)", "\n".join(commands)):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
    for target in re.findall(r"^make (\w+)", text, flags=re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    subprocess.run(["shellcheck", ROOT / "examples/slurm.sh"], check=True)


def test_the_directives_of_slurm_stand_before_the_first_command():
    """sbatch reads none after it."""
    lines = scripts()["slurm.sh"].splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = {i: line for i, line in enumerate(lines) if line.startswith("#SBATCH")}
    assert directives and max(directives) < first
    given = [re.fullmatch(r"#SBATCH --([a-z-]+)=(\S+)", line) for line in directives.values()]
    assert all(given) and {one[1] for one in given if one} == SBATCH
    values = {one[1]: one[2] for one in given if one}
    seeds = re.search(r"^seeds=\((.*)\)$", scripts()["slurm.sh"], flags=re.MULTILINE)
    assert values["array"] == f"0-{len(seeds[1].split()) - 1}" and re.fullmatch(r"\d+:\d\d:\d\d", values["time"])


def test_the_task_of_skypilot_has_its_keys_and_no_value_where_a_person_must_give_one():
    task = skypilot()
    assert set(task) <= TASK and {"name", "resources", "setup", "run"} <= set(task)
    assert set(task["resources"]) <= RESOURCES
    assert task["envs"]["REPOSITORY"] is None and task["envs"]["REMOTE"] is None
    assert set(task["secrets"].values()) == {None}
    assert (ROOT / f"studies/{task['envs']['STUDY']}.yaml").is_file()
    used = set(re.findall(r"\$([A-Z_]+)", task["setup"] + task["run"])) - {"PWD", "PATH"}
    assert used == set(task["envs"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_holds_no_secret_and_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"hf_\w{8}|AKIA\w{8}|ghp_\w{8}|-----BEGIN|(?i:password|api_key)\s*[:=]\s*\S", text)
    assert not re.search(r"(?<![\w.$}])/(home|root|work|mnt|data|Users|scratch)/", text)
    # Data has no comments; docs/ describes it.
    assert path.suffix not in (".yaml", ".sh") or re.search(r"^# ", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def disk_at_paper_scale(tmp_path_factory):
    """By the planner, for a seed of the examples' study."""
    folder = tmp_path_factory.mktemp("planner")
    project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params = composed(["recipe=empo", "model=zephyr-7b", "hardware=gpu"])
        return disk(params, size(shape(params, None), params))


def test_the_machine_has_the_disk_that_the_planner_computes(disk_at_paper_scale):
    task = skypilot()
    assert "cache.type reflink,hardlink" in task["setup"]
    # Packages with CUDA, encoders and corpora: some GB.
    assert disk_at_paper_scale.linked / 1e9 + 20 <= task["resources"]["disk_size"] < disk_at_paper_scale.copied / 1e9


def test_slurm_gives_the_time_that_a_checkpoint_takes(disk_at_paper_scale):
    [(shell, seconds)] = re.findall(r"^#SBATCH --signal=(B:)?TERM@(\d+)$", scripts()["slurm.sh"], flags=re.MULTILINE)
    # A step first, some seconds; and no longer than the launcher of several ranks waits for them.
    assert shell and disk_at_paper_scale.seconds + 60 <= int(seconds) <= SHUTDOWN
