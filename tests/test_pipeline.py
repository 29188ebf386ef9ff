"""The pipeline as its users run it: `dvc repro` and `dvc exp run` in a fresh clone, with a very small model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, project
from micro import Clone, stages_run
from ruamel.yaml import YAML

from attune.tools.pipeline import diagram

VARIANTS = ("base", "sft-dpo")


@pytest.fixture(scope="module")
def clone(micro, tmp_path_factory) -> Clone:
    """A clone in which the pipeline has run once, committed; nothing that runs in it changes what was committed."""
    return micro.clone.copy(tmp_path_factory.mktemp("pipeline") / "clone")


@pytest.mark.slow
def test_repro_makes_every_metric_and_page(clone):
    for variant in VARIANTS:
        metrics = json.loads(clone.read(f"metrics/text/{variant}.json"))
        assert {"bleu_4", "rouge_l", "dist_2", "preference_accuracy", "bertscore_f1"} <= metrics.keys()
        levels = json.loads(clone.read(f"metrics/epitome/{variant}.json"))
        bounds = json.loads(clone.read(f"metrics/intervals/epitome/{variant}.json"))
        assert bounds["diff_er.low"] <= levels["diff_er"] <= bounds["diff_er.high"]
        assert 0 <= json.loads(clone.read(f"metrics/mmlu/{variant}.json"))["acc"] <= 100
        bounds = json.loads(clone.read(f"metrics/intervals/text/{variant}.json"))
        for name in ("rouge_l", "bertscore_f1", "preference_accuracy"):
            assert bounds[f"{name}.low"] <= metrics[name] <= bounds[f"{name}.high"]
        assert ("rouge_l.diff" in bounds) is (variant != "base")
        assert metrics["bertscore_f1"] > 0 and bounds["bleu_1.low"] < bounds["bleu_1.high"]
        assert variant in clone.read("reports/summary.md")
    assert json.loads(clone.read("metrics/pairs/e2.json"))["pairs"] == 160
    assert clone.run(sys.executable, "-m", "attune", "show").startswith(
        "sft-dpo prefers the human reply to its opposite"
    )


@pytest.mark.slow
def test_results_are_in_git_and_models_are_not(clone):
    tracked = clone.run("git", "ls-files").splitlines()
    pages = {"dvc.lock", "metrics/data.json", "data/manifest.json", "reports/summary.md", "reports/cards/sft-dpo.md"}
    metrics = {f"metrics/{folder}/sft-dpo.json" for folder in ("text", "epitome", "mmlu")}
    assert pages | metrics | {"metrics/classifiers/epitome.json"} <= set(tracked)
    untracked = ("models/", "data/raw/", "data/dialogues/", "data/pairs/", "data/replies/", "data/scores/")
    assert {Path(name).name for name in tracked if name.startswith((*untracked, "reports/curves/"))} <= {".gitignore"}


@pytest.mark.slow
def test_second_repro_runs_nothing_and_leaves_no_trace(clone):
    assert stages_run(clone.run("dvc", "repro")) == []
    assert clone.run("git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_another_clone_pulls_what_was_pushed_and_runs_nothing(clone, tmp_path):
    """What `dvc push` puts into a remote, here a folder, and Git are all that another machine needs."""
    remote = ["dvc", "remote", "add", "--local", "--default", "shared", str(tmp_path / "remote")]
    clone.run(*remote)
    clone.run("dvc", "push")
    there = clone.on_another_machine(tmp_path / "b")
    there.run(*remote)
    there.run("dvc", "pull")
    assert stages_run(there.run("dvc", "repro")) == []
    assert there.run("git", "status", "--porcelain") == ""
    for name in ("models/dpo/e2/adapter_model.safetensors", "data/replies/sft-dpo.parquet"):
        assert (there.folder / name).read_bytes() == (clone.folder / name).read_bytes()


@pytest.mark.slow
def test_dag_and_plots_can_be_shown(clone):
    dag = clone.run("dvc", "dag", "--mermaid")
    assert "dpo@e1" in dag and "generate@sft-dpo" in dag
    # This recipe has no third round.
    assert "failed" not in clone.run("dvc", "plots", "show", "-o", "shown")
    assert "DPO reward accuracy" in clone.read("shown/index.html")
    shutil.rmtree(clone.folder / "shown")


@pytest.mark.slow
def test_stage_without_its_input_says_what_is_missing(clone, tmp_path):
    (clone.folder / "params.yaml").rename(tmp_path / "params.yaml")
    output = clone.run(sys.executable, "-m", "stages.prepare", ok=False)
    (tmp_path / "params.yaml").rename(clone.folder / "params.yaml")
    assert output.startswith("error: params.yaml is missing") and "Traceback" not in output


def test_diagram_of_the_readme_is_the_pipeline(monkeypatch):
    """Mend it with the output of `python -m attune pipeline`."""
    monkeypatch.chdir(ROOT)
    assert (ROOT / "README.md").read_text(encoding="utf-8").split("```mermaid\n")[1].split("```")[0] == diagram()


def composed_pipeline(folder: Path, *overrides: str) -> dict[str, dict[str, list[str]]]:
    """The stages as DVC resolves them under a composition: their deps, outs and params."""
    folder.mkdir(exist_ok=True)
    project(folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    compose = [sys.executable, "-m", "attune", "params", *overrides]
    subprocess.run(compose, cwd=folder, check=True, env=environment, capture_output=True)
    return resolved(folder)


def resolved(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The stages as DVC resolves them under the params of `folder`."""
    from dvc.parsing import DataResolver
    from dvc.repo import Repo

    repo = Repo(str(folder))
    text = YAML(typ="safe").load((folder / "dvc.yaml").read_text(encoding="utf-8"))
    return DataResolver(repo, str(folder), text).resolve()["stages"]


def test_policy_pairs_depend_on_the_previous_round_and_empo_pairs_on_no_model(tmp_path):
    for name in ("empo", "dbt", "counsel"):
        (tmp_path / name).mkdir()
    empo = composed_pipeline(tmp_path / "empo", "recipe=empo", "model=tiny")
    study = composed_pipeline(tmp_path / "dbt", "recipe=dbt", "model=tiny")
    for key in ("e1", "e2", "e3"):
        deps = empo[f"pairs@{key}"]["deps"]
        assert not [dep for dep in deps if dep.startswith("models/")]
        # A change of beta does not reach them by a parameter either.
        assert "dpo.beta" not in empo[f"pairs@{key}"]["params"]
    assert [name for name in empo if name.startswith("classifier@")] == ["classifier@epitome"]
    by_model = {
        key: {dep for dep in study[f"pairs@{key}"]["deps"] if dep.startswith("models/")}
        for key in ("e1", "e2", "base-e1", "base-e2")
    }
    assert by_model == {
        "e1": {"models/dbt"},
        "e2": {"models/dbt", "models/dpo/e1"},
        "base-e1": {"models/dbt"},
        "base-e2": {"models/dbt", "models/dpo/base-e1"},
    }
    assert {"models/base", "data/pairs/base-e1.parquet"} <= set(study["dpo@base-e1"]["deps"])
    assert study["classifier@dbt"]["outs"] == ["models/dbt"]
    counsel = composed_pipeline(tmp_path / "counsel", "recipe=counsel", "model=tiny")
    assert not [dep for key in ("e1", "e2") for dep in counsel[f"pairs@{key}"]["deps"] if dep.startswith("models/")]
    assert counsel["classifier@behaviour"]["outs"] == ["models/behaviour"]
    assert {"models/behaviour", "data/replies/dpo.parquet"} <= set(counsel["scores@dpo-behaviour"]["deps"])
    assert not [name for name in counsel if "dbt" in name]


STANDARD = ["+adapters.sft-high={quality: high}",
            "+variants.sft-high={model: models/sft-high, instruction: data/dialogues}",
            "+variants.prompted={model: models/base, instruction: data/prompts/counsellor.txt}"]  # fmt: skip


def test_standard_approaches_add_their_stages_and_change_no_other(tmp_path):
    without, added = resolved(ROOT), composed_pipeline(tmp_path, *STANDARD)
    assert not [name for name in without if "high" in name or "prompted" in name]
    made = {name: stage for name, stage in added.items() if name not in without}
    every = ("generate@{}", "evaluate@{}", "scores@{}-epitome", "intervals@{}-text", "intervals@{}-epitome",
             "intervals@{}-mmlu", "mmlu@{}", "card@{}")  # fmt: skip
    assert made.keys() == {"sft@sft-high", *(name.format(key) for name in every for key in ("sft-high", "prompted"))}
    assert {name: added[name] for name in without} == without
    high = made["sft@sft-high"]
    assert high["outs"] == ["models/sft-high", "reports/curves/sft-high"]
    assert high["deps"] == without["sft@sft"]["deps"]
    assert "models/sft-high" in made["generate@sft-high"]["deps"]
    # What a reply depends on, and so its key in DVC's cache: for the prompted variant also the instruction.
    base, prompted = (set(added[f"generate@{key}"]["deps"]) for key in ("base", "prompted"))
    assert prompted - base == {"data/prompts/counsellor.txt"} and base <= prompted
    assert "data/prompts/counsellor.txt" not in made["mmlu@prompted"]["deps"]


def test_every_param_is_read_by_some_stage_or_changes_no_result(tmp_path):
    """A key that no stage lists could be changed without anything but the pages being made again."""
    yaml = YAML(typ="safe")
    listed = {key for stage in resolved(ROOT).values() for key in stage.get("params", [])}
    sections = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    leaves = {f"{name}.{key}" for name, section in sections.items() if isinstance(section, dict) for key in section}
    unread = {leaf for leaf in leaves if not {leaf, leaf.partition(".")[0]} & listed}
    # How the endpoint or a machine is reached; settings of classifiers and stages that this recipe does not use.
    unused = {"dbt", "behaviour", "safety", "truth", "converse", "judge"}
    assert {leaf.partition(".")[0] for leaf in unread} == {"endpoint", "runtime", *unused}
    assert {name for name, section in sections.items() if not isinstance(section, dict)} == {"seed", "scorers"}
