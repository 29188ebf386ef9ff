"""Studies: the grid, DVC's queue and the pages; on a small project that DVC runs."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import get_hydra_sweeps
from helpers import ROOT, git, project
from ruamel.yaml import YAML

from attune.config.params import compose, load
from attune.config.schema import bertscore_encoder
from attune.report.tables import BEHAVIOUR_COLUMNS, DBT_COLUMNS
from attune.runtime.errors import UserError
from attune.tools import study
from attune.tools.pipeline import stages_in_order
from attune.tools.study_plan import grid, read
from attune.tools.study_results import COLUMNS, collect, figure

STUDY = """
title: A small study
source: nobody
targets: []
shown: {kind: spread, variants: [sft], metrics: [diff_epitome, rouge_l], x: dpo.beta}
scales:
  small: [lora.r=4, 'dpo.beta=0.1,0.2', 'seed=13,14']
"""
# Leaves a line for each time that it runs, outside of the project that DVC copies. With a negative beta it fails, once
# the one of the other seed runs, too: a pipe opens when both of its ends are open.
SCORE = """
import json, os, pathlib, signal, sys, yaml
params = yaml.safe_load(open("params.yaml"))
beta, seed, threads = params["dpo"]["beta"], params["seed"], params["compute"]["threads"]
with open(sys.argv[1], "a") as log: log.write(f"{beta} {seed} {threads}\\n")
if beta < 0:
    signal.alarm(300)
    open(sys.argv[1] + ".pipe", "r" if seed == 13 else "w").close()
    sys.exit("beta is negative")
value = beta * seed
epitome = {"diff_er": value, "diff_ex": 2 * value, "diff_ip": 3 * value}
for name, values in (("epitome", epitome), ("text", {"rouge_l": 10})):
    pathlib.Path("metrics", name).mkdir(parents=True, exist_ok=True)
    json.dump(values, open(f"metrics/{name}/sft.json", "w"))
"""
NAMES = {name.stem: name for name in (ROOT / "studies").glob("*.yaml")}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A project of one stage, with a study and its figure; the working directory."""
    root, log = tmp_path / "project", tmp_path / "log"
    (root / "studies").mkdir(parents=True)
    (root / "studies/small.yaml").write_text(STUDY)
    (root / "params.yaml").write_text(
        "seed: 13\ndpo: {beta: 0.1}\nlora: {r: 8}\nscorers: [text, epitome]\ncompute: {threads: 2}\n"
    )
    (root / "score.py").write_text(SCORE)
    (root / "dvc.yaml").write_text(
        f"stages:\n  score:\n    cmd: {sys.executable} score.py {log}\n    deps: [score.py]\n"
        "    params: [seed, dpo.beta, lora.r, compute.threads]\n"
        "    metrics:\n      - metrics/text/sft.json: {cache: false}\n"
        "      - metrics/epitome/sft.json: {cache: false}\n"
        "plots:\n  - Small:\n      x: dpo.beta\n      y: {reports/studies/small.csv: [diff_epitome, rouge_l]}\n"
    )
    log.touch()
    os.mkfifo(f"{log}.pipe")
    monkeypatch.chdir(root)
    return log


@pytest.fixture
def small(files, monkeypatch):
    """The same in Git and DVC; the log of what ran."""
    from dvc.repo import Repo

    monkeypatch.setattr(study, "PAUSE", 2.0)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for kind, key in itertools.product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
        monkeypatch.setenv(f"GIT_{kind}_{key}", "test@test")
    subprocess.run(["git", "init", "-q"], check=True)
    Repo.init().close()
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", "commit", "-qm", "one"], check=True)
    return files


def settings(*overrides):
    return grid("small", read("small"), "small", overrides)


@pytest.mark.parametrize("name", NAMES)
def test_every_study_composes(name, tmp_path, monkeypatch):
    """With the stages that it names, and each of its metrics measured by one of them."""
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = read(name, ROOT / "studies")
    for scale in found.scales:
        [last] = get_hydra_sweeps({"params.yaml": grid(name, found, scale, []).overrides})[-1].values()
        compose(last)
        params = load()
        encoders = (params.encoder.name, bertscore_encoder(params).name)
        published = ("roberta-base", "FacebookAI/roberta-large")
        assert encoders == (published if scale == "paper" else ("all-MiniLM-L6-v2",) * 2)
        stages = set(stages_in_order(found.targets))
        assert {"base", *found.targets} <= stages
        for variant in found.shown.variants:
            # Every metric has a column, and the stage that measures it is one of the experiment's.
            assert {measuring(metric, variant) for metric in found.shown.metrics} <= stages


def measuring(metric, variant):
    """The stage, by the table of the report in which the metric is."""
    assert metric in COLUMNS
    if metric == "mmlu":
        return f"mmlu@{variant}"
    classifiers = [
        name
        for name, here in {
            "dbt": metric in DBT_COLUMNS,
            "behaviour": metric in BEHAVIOUR_COLUMNS,
            "epitome": metric.startswith(("diff_", "level_")),
        }.items()
        if here
    ]
    return f"scores@{variant}-{classifiers[0]}" if classifiers else f"evaluate@{variant}"


def test_an_override_replaces_that_of_the_scale(files):
    assert settings().overrides == ["lora.r=4", "dpo.beta=0.1,0.2", "seed=13,14"]
    assert settings().axes == settings("seed=7").axes == ["dpo.beta", "seed"]
    assert settings("seed=7", "lora.r=2", "sft.epochs=3").overrides == [
        "lora.r=2", "dpo.beta=0.1,0.2", "seed=7", "sft.epochs=3"
    ]  # fmt: skip
    # Other values of an axis are points of the same study; another override makes another one.
    assert settings("seed=7").name == settings().name != settings("lora.r=2").name
    with pytest.raises(UserError, match="'seed' is no override: write key=value"):
        settings("seed")


def test_show_prints_the_command_that_queues_the_grid(small, capsys):
    study.main(["show", "small", "seed=7"])
    name = settings().name
    assert capsys.readouterr().out == (
        f"dvc exp run --queue --name {name} -S lora.r=4 -S dpo.beta=0.1,0.2 -S seed=7\nfinished: none\n"
    )


def test_a_study_runs_in_dvcs_queue_and_its_pages_hold_the_results(small):
    study.run_grid(settings(), [], 1)
    points = [["0.1", "13", "2"], ["0.1", "14", "2"], ["0.2", "13", "2"], ["0.2", "14", "2"]]
    assert sorted(line.split() for line in small.read_text().splitlines()) == points
    # With a point that has already run and comes from the run cache.
    study.run_grid(settings("dpo.beta=0.1", "seed=14,15"), [], 1)
    assert len(small.read_text().splitlines()) == 5
    collect("small", read("small"), settings(), study.done(settings().name))
    with Path("reports/studies/small.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dpo.beta"], row["seed"], row["variant"]) for row in rows] == [
        *(("0.1", seed, "sft") for seed in ("13", "14", "15")),
        *(("0.2", seed, "sft") for seed in ("13", "14")),
    ]
    assert [float(row["diff_epitome"]) for row in rows[:3]] == pytest.approx([2.6, 2.8, 3.0])
    page = Path("reports/studies/small.md").read_text()
    assert "from 5 experiments, seeds 13, 14, 15" in page
    assert "| dpo.beta=0.1, sft |  2.800 ± 0.200 | 10.00 ± 0.00 |" in page
    assert Path("reports/studies/small.svg").read_text().startswith("<svg")
    assert Path("reports/studies/small.png").read_bytes().startswith(b"\x89PNG")
    shown = dvc("plots", "show", "--json")["data"]["Small"][0]["content"]
    assert [(one["dpo.beta"], one["field"], one["dvc_inferred_y_value"]) for one in shown["data"]["values"]] == [
        (row["dpo.beta"], metric, row[metric]) for metric in ("diff_epitome", "rouge_l") for row in rows
    ]
    assert (shown["title"]["text"], shown["encoding"]["x"]["title"]) == ("Small", "dpo.beta")
    assert dvc("plots", "diff", "HEAD", "--json")["data"]["Small"]


def dvc(*command):
    shown = subprocess.run([sys.executable, "-m", "dvc", *command], check=True, capture_output=True, text=True)
    return json.loads(shown.stdout)


def test_a_figure_is_the_same_bytes_each_time_and_its_ticks_are_the_grid():
    study = read("empo-figure3", ROOT / "studies")
    drawn = figure(study, _rows())
    assert drawn == figure(study, _rows())
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn["svg"].decode())
    assert texts.count("0.1") == texts.count("0.2") == len(study.shown.metrics)
    assert "dpo.beta" in texts


def test_dvc_draws_the_figure_of_each_study():
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]
    drawn = {title: plot for one in plots for title, plot in one.items() if "studies" in next(iter(plot["y"]))}
    shown = {name: read(name, ROOT / "studies") for name in NAMES}
    assert drawn == {
        study.title: {
            "x": study.shown.x,
            "template": "scatter",
            "y": {f"reports/studies/{name}.csv": metrics if len(metrics) > 1 else metrics[0]},
        }
        for name, study in shown.items()
        if (metrics := study.shown.metrics) and study.shown.kind != "table"
    }
    # DVC warns where a file is missing: that of a study which was not run is a header.
    for plot in drawn.values():
        (file,) = plot["y"]
        assert (ROOT / file).read_text(encoding="utf-8").startswith(f"experiment,revision,{plot['x']},seed,variant,")


def _rows():
    from attune.tools.study_results import Row

    return [
        Row("x", {"dpo.beta": beta}, seed, "sft-dpo", "0", {"diff_epitome": beta * seed, "rouge_l": 1.0})
        for beta in (0.1, 0.2) for seed in (13, 14)
    ]  # fmt: skip


# In another process: Celery keeps one broker a process, here that of another test's project.
SIDE_BY_SIDE = """
import sys
from attune.tools import study
from attune.tools.study_plan import grid, read
study.PAUSE = 2.0
study.os.cpu_count = lambda: 6
study.run_grid(grid("small", read("small"), "small", ["dpo.beta=-1"]), [], 2)
"""


def test_experiments_side_by_side_share_the_cores_and_those_that_fail_are_named(small):
    waiting = subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert "2 of 2 experiments failed: `dvc queue status` lists those of small-" in waiting.stderr
    assert sorted(line.split() for line in small.read_text().splitlines()) == [["-1", "13", "3"], ["-1", "14", "3"]]


def test_what_is_not_there_is_named(files):
    with pytest.raises(UserError, match=r"studies/large\.yaml is missing: studies: small"):
        read("large")
    with pytest.raises(UserError, match="small has no scale paper: small"):
        grid("small", read("small"), "paper", [])
    with pytest.raises(UserError, match="no experiment of small has finished at this commit"):
        collect("small", read("small"), settings(), {})
    path = Path("studies/small.yaml")
    path.write_text(STUDY.replace("x: dpo.beta", "x: dpo.gamma"))
    with pytest.raises(UserError, match=r"shown\.x = 'dpo\.gamma' is no axis of scale small: dpo\.beta, seed"):
        read("small")
    path.write_text(STUDY.replace("title: A small study", "name: A small study"))
    with pytest.raises(UserError, match=r"small\.yaml: title: "):
        read("small")


def test_jobs_share_the_cores(files):
    assert study.threads_of(settings(), 1, 8) == []
    assert study.threads_of(settings(), 2, 8) == ["compute.threads=4"]
    assert study.threads_of(settings(), 4, 2) == ["compute.threads=1"]
    assert study.threads_of(settings("compute.threads=3"), 4, 8) == []


def test_an_experiment_of_another_machine_is_collected(small, tmp_path):
    """Two clones that share a Git remote."""
    shared, other, name = str(tmp_path / "shared.git"), tmp_path / "other", settings().name
    git("clone", "-q", "--bare", ".", shared)
    git("remote", "add", "origin", shared)
    git("clone", "-q", shared, str(other))
    for command in (
        ["run", "--name", f"{name}-x-1", "-S", "dpo.beta=0.1", "-S", "seed=14"],
        ["push", "--no-cache", "--rev", "HEAD", "origin"],
    ):
        subprocess.run([sys.executable, "-m", "dvc", "exp", *command], cwd=other, check=True, capture_output=True)
    assert study.done(name) == {}
    study._dvc("exp", "pull", "--no-cache", "--rev", "HEAD", "origin")
    assert list(study.done(name)) == [f"{name}-x-1"]
    collect("small", read("small"), settings(), study.done(name))
    with Path("reports/studies/small.csv").open(newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["14"]
