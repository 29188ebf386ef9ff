"""Studies: the grid, the queue, what is done once, and the pages that come out; on a small project that DVC runs."""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, git, project
from ruamel.yaml import YAML

from attune.report.tables import BEHAVIOUR_COLUMNS, DBT_COLUMNS
from attune.runtime.errors import UserError
from attune.tools import study
from attune.tools.study_plan import experiments, read
from attune.tools.study_results import COLUMNS, collect, figure

STUDY = """
title: A small study
source: nobody
targets: []
shown: {kind: spread, variants: [sft], metrics: [diff_epitome, rouge_l], x: dpo.beta}
scales:
  tiny: {overrides: [lora.r=4], grid: {dpo.beta: [0.1]}, seeds: [13, 14]}
"""
# Leaves a line for each time that it runs, outside of the project that DVC copies. With a negative beta it fails, once
# the one of the other seed runs, too: a pipe opens when both of its ends are open.
SCORE = """
import json, os, pathlib, signal, sys, yaml
params = yaml.safe_load(open("params.yaml"))
beta, seed, threads = params["dpo"]["beta"], params["seed"], params["hardware"]["threads"]
with open(sys.argv[1], "a") as log: log.write(f"{beta} {seed} {threads}\\n")
if beta < 0:
    signal.alarm(300)
    open(sys.argv[1] + ".pipe", "r" if seed == 13 else "w").close()
    sys.exit("beta is negative")
value = beta * seed
pathlib.Path("metrics").mkdir(exist_ok=True)
json.dump({"diff_er": value, "diff_ex": 2 * value, "diff_ip": 3 * value, "rouge_l": 10}, open("metrics/sft.json", "w"))
"""
NAMES = {name.stem: name for name in (ROOT / "studies").glob("*.yaml")}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A project of one stage, with a study and its figure; the working directory."""
    root, log = tmp_path / "project", tmp_path / "log"
    (root / "studies").mkdir(parents=True)
    (root / "studies/small.yaml").write_text(STUDY)
    (root / "params.yaml").write_text("seed: 13\ndpo: {beta: 0.1}\nlora: {r: 8}\nhardware: {threads: 2}\n")
    (root / "score.py").write_text(SCORE)
    (root / "dvc.yaml").write_text(
        f"stages:\n  score:\n    cmd: {sys.executable} score.py {log}\n    deps: [score.py]\n"
        "    params: [seed, dpo.beta, lora.r, compute.threads]\n"
        "    metrics:\n      - metrics/sft.json: {cache: false}\n"
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

    monkeypatch.setattr(study, "PAUSE", 0.5)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for kind, key in itertools.product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
        monkeypatch.setenv(f"GIT_{kind}_{key}", "test@test")
    subprocess.run(["git", "init", "-q"], check=True)
    Repo.init().close()
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", "commit", "-qm", "one"], check=True)
    return files


def points(*overrides):
    return experiments("small", read("small"), "tiny", overrides)


def run(found, threads):
    queued = study.queue(found, [], threads)
    study.start(1)
    study.wait(found, 1)
    return queued


@pytest.mark.parametrize("name", NAMES)
def test_every_study_has_points_that_compose(name, tmp_path, monkeypatch):
    """With the stages that it names, and each of its metrics measured by one of them."""
    project(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    found = read(name, ROOT / "studies")
    for scale in found.scales:
        grid = experiments(name, found, scale, [])
        assert len({one.name for one in grid}) == len(grid)
        stages = study.stages_of(grid[-1], found.targets)
        assert {"base", *found.targets} <= set(stages)
        for variant in found.shown.variants:
            # Every metric has a column, and the stage that measures it is one of the experiment's.
            assert {f"{measuring(metric)}@{variant}" for metric in found.shown.metrics} <= set(stages)


def measuring(metric):
    """The stage, by the table of the report in which the metric is."""
    if metric == "mmlu":
        return "mmlu"
    if metric in DBT_COLUMNS:
        return "dbt_scores"
    if metric in BEHAVIOUR_COLUMNS:
        return "behaviour_scores"
    assert metric in COLUMNS
    return "evaluate"


def test_an_override_replaces_what_the_scale_and_the_grid_say(files):
    Path("studies/small.yaml").write_text(STUDY.replace("[0.1]", "[0.1, 0.2]"))
    assert [one.arguments for one in points()] == [
        ["lora.r=4", f"dpo.beta={beta}", f"seed={seed}"] for beta in (0.1, 0.2) for seed in (13, 14)
    ]
    assert [one.arguments for one in points("seed=7", "lora.r=2")] == [
        ["lora.r=2", "seed=7", f"dpo.beta={beta}"] for beta in (0.1, 0.2)
    ]
    assert points("seed=13")[0].name == points()[0].name
    with pytest.raises(UserError, match="'seed' is no override: key=value is"):
        points("seed")


def test_a_study_that_was_killed_runs_each_point_once_and_its_pages_say_what_came_out(small):
    command, here = [sys.executable, "-m", "attune", "study", "run", "small"], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here) as killed:
        assert killed.stdout is not None and killed.stdout.readline() == "2 experiments queued, 2 in all\n"
        # It looks on while the worker, which outlives it, begins.
        assert killed.stdout.readline() == "2 queued\n"
        assert any("done" in line for line in killed.stdout)
        killed.kill()
    assert run(points(), None) == 0
    assert [line.split()[:3] for line in sorted(small.read_text().splitlines())] == [
        ["0.1", seed, "2"] for seed in ("13", "14")
    ]
    # As with -j: another number of threads is no other experiment.
    assert run(points(), 1) == 0 and len(small.read_text().splitlines()) == 2
    collect("small", read("small"), points(), study.done(points()))
    with Path("reports/studies/small.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dpo.beta"], row["seed"], row["variant"]) for row in rows] == [("0.1", s, "sft") for s in ("13", "14")]
    assert [float(row["diff_epitome"]) for row in rows] == pytest.approx([2.6, 2.8])
    page = Path("reports/studies/small.md").read_text()
    assert "from 2 of 2 experiments, seeds 13, 14" in page
    assert "| dpo.beta=0.1, sft |  2.700 ± 0.141 | 10.00 ± 0.00 |" in page
    assert Path("reports/studies/small.svg").read_text().startswith("<?xml")
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
    # The glyphs are paths; what each group of them says is a comment.
    ticks = re.findall(r'id="xtick_.*?<!-- (.*?) -->', drawn["svg"].decode(), flags=re.DOTALL)
    assert ticks == ["0.1", "0.2"]


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


def _rows():
    from attune.tools.study_results import Row

    return [
        Row("x", {"dpo.beta": beta}, seed, "sft-dpo", "0", {"diff_epitome": float(beta) * int(seed), "rouge_l": 1.0})
        for beta in ("0.1", "0.2") for seed in ("13", "14")
    ]  # fmt: skip


# Nobody has started a worker, or all of them have ended.
WITHOUT_WORKERS = """
from attune.tools import study
from attune.tools.study_plan import experiments, read
study.STARTING = 5.0
study.wait(experiments("small", read("small"), "tiny", ["dpo.beta=-1"]), 2)
"""


def test_experiments_side_by_side_share_the_cores_and_those_that_fail_are_named(small):
    study.queue(points("dpo.beta=-1"), [], 3)
    # In a process of its own: Celery keeps one broker a process, here that of another test's project.
    waiting = subprocess.run(
        [sys.executable, "-c", WITHOUT_WORKERS],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "2 of 2 experiments did not come to their end: `dvc queue logs small-" in waiting.stderr
    ran = [line.split() for line in small.read_text().splitlines()]
    assert sorted(seed for _, seed, _ in ran) == ["13", "14"]
    assert {threads for _, _, threads in ran} == {"3"}


def test_what_is_not_there_is_named(files):
    with pytest.raises(UserError, match=r"studies/large\.yaml is missing: studies: small"):
        read("large")
    with pytest.raises(UserError, match="small has no scale paper: tiny"):
        experiments("small", read("small"), "paper", [])
    with pytest.raises(UserError, match="no experiment of small is done at this commit"):
        collect("small", read("small"), points(), {})
    path = Path("studies/small.yaml")
    path.write_text(STUDY.replace("x: dpo.beta", "x: dpo.gamma"))
    with pytest.raises(UserError, match=r"shown\.x = 'dpo\.gamma' is no key of the grid"):
        read("small")
    path.write_text(STUDY.replace("title: A small study", "name: A small study"))
    with pytest.raises(UserError, match=r"small\.yaml: title: "):
        read("small")


def test_threads_are_shared_out():
    assert study.share_out(1, 8) is None
    assert study.share_out(2, 8) == 4
    assert study.share_out(4, 2) == 1


def test_an_experiment_of_another_machine_is_collected_here_and_not_run_again(small, tmp_path):
    """Two clones that share a Git remote."""
    shared, other, (first, second) = str(tmp_path / "shared.git"), tmp_path / "other", points()
    git("clone", "-q", "--bare", ".", shared)
    git("remote", "add", "origin", shared)
    git("clone", "-q", shared, str(other))
    settings = [argument for override in second.arguments for argument in ("-S", override)]
    for command in (["run", "--name", second.name, *settings], ["push", "--no-cache", "--rev", "HEAD", "origin"]):
        subprocess.run([sys.executable, "-m", "dvc", "exp", *command], cwd=other, check=True, capture_output=True)
    assert study.done([first, second]) == {}
    study._dvc("exp", "pull", "--no-cache", "--rev", "HEAD", "origin")
    assert list(study.done([first, second])) == [second.name], "so that it is not queued"
    collect("small", read("small"), points(), study.done(points()))
    with Path("reports/studies/small.csv").open(newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["14"]
