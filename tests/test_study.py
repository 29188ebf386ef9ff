"""Studies: the grid, the queue, what is done once, and the pages that come out; on a small project that DVC runs."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, project

from stages import study
from stages.study_plan import StudyError, experiments, read
from stages.study_results import collect, figure

STUDY = """
title: A small study
source: nobody
targets: []
shown: {kind: spread, variants: [sft], metrics: [diff_epitome, rouge_l], x: dpo.beta}
scales:
  tiny: {overrides: [lora.r=4], grid: {dpo.beta: [0.1, 0.2]}, seeds: [13, 14]}
"""
# Leaves a line for each time that it runs, outside of the project that DVC copies.
SCORE = """
import json, pathlib, sys, yaml
params = yaml.safe_load(open("params.yaml"))
with open(sys.argv[1], "a") as log: log.write(f"{params['dpo']['beta']} {params['seed']}\\n")
value = params["dpo"]["beta"] * params["seed"]
if params["dpo"]["beta"] < 0: sys.exit("beta is negative")
pathlib.Path("metrics").mkdir(exist_ok=True)
json.dump({"diff_er": value, "diff_ex": 2 * value, "diff_ip": 3 * value, "rouge_l": 10}, open("metrics/sft.json", "w"))
"""
NAMES = {name.stem: name for name in (ROOT / "studies").glob("*.yaml")}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A project of one stage in Git and DVC, with a study; the working directory."""
    root, log = tmp_path / "project", tmp_path / "log"
    (root / "studies").mkdir(parents=True)
    (root / "studies/small.yaml").write_text(STUDY)
    (root / "params.yaml").write_text("seed: 13\ndpo: {beta: 0.1}\nlora: {r: 8}\n")
    (root / "score.py").write_text(SCORE)
    (root / "dvc.yaml").write_text(
        f"stages:\n  score:\n    cmd: {sys.executable} score.py {log}\n    deps: [score.py]\n"
        "    params: [seed, dpo.beta, lora.r]\n    metrics:\n      - metrics/sft.json: {cache: false}\n"
    )
    log.touch()
    monkeypatch.chdir(root)
    monkeypatch.setattr(study, "PAUSE", 0.5)
    for command in ("git init -q", "dvc init -q", "git add .", "git commit -qm one"):
        who = {f"GIT_{kind}_{key}": "test@test" for kind in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
        for key, value in who.items():
            monkeypatch.setenv(key, value)
        program = [sys.executable, "-m", "dvc"] if command.startswith("dvc") else ["git"]
        subprocess.run([*program, *command.split()[1:]], check=True)
    return log


def points(*overrides):
    return experiments("small", read("small"), "tiny", overrides)


def run(*overrides):
    found = points(*overrides)
    queued = study.queue(found, [])
    study.start(1)
    study.wait(found)
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
            mmlu = {"mmlu"} & set(found.shown.metrics)
            assert not mmlu or f"mmlu@{variant}" in stages
            assert mmlu == set(found.shown.metrics) or f"evaluate@{variant}" in stages


def test_an_override_replaces_what_the_scale_and_the_grid_say(small):
    assert [one.arguments for one in points()] == [
        ["lora.r=4", f"dpo.beta={beta}", f"seed={seed}"] for beta in (0.1, 0.2) for seed in (13, 14)
    ]
    assert [one.arguments for one in points("seed=7", "lora.r=2")] == [
        ["lora.r=2", "seed=7", f"dpo.beta={beta}"] for beta in (0.1, 0.2)
    ]
    assert points("seed=13")[0].name == points()[0].name
    with pytest.raises(StudyError, match="'seed' is no override: key=value is"):
        points("seed")


def test_a_study_that_was_killed_runs_each_point_once_and_its_pages_say_what_came_out(small):
    command, here = [sys.executable, "-m", "stages.study", "run", "small"], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here) as killed:
        assert killed.stdout is not None and killed.stdout.readline() == "4 experiments queued, 4 in all\n"
        assert any("done" in line for line in killed.stdout)
        killed.kill()
    assert run() == 0
    assert sorted(small.read_text().split("\n"))[1:] == ["0.1 13", "0.1 14", "0.2 13", "0.2 14"]
    assert run() == 0 and len(small.read_text().split("\n")) == 5
    collect("small", read("small"), points(), study.done(points()))
    with Path("reports/studies/small.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dpo.beta"], row["seed"], row["variant"]) for row in rows] == [
        (beta, seed, "sft") for beta in ("0.1", "0.2") for seed in ("13", "14")
    ]
    assert [float(row["diff_epitome"]) for row in rows] == pytest.approx([2.6, 2.8, 5.2, 5.6])
    page = Path("reports/studies/small.md").read_text()
    assert "from 4 of 4 experiments, seeds 13, 14" in page
    assert "| dpo.beta=0.1, sft |  2.700 ± 0.141 | 10.00 ± 0.00 |" in page
    assert Path("reports/studies/small.svg").read_text().startswith("<?xml")
    assert Path("reports/studies/small.png").read_bytes().startswith(b"\x89PNG")
    assert figure(read("small"), _rows()) == figure(read("small"), _rows())


def _rows():
    from stages.study_results import Row

    return [
        Row("x", {"dpo.beta": beta}, seed, "sft", "0", {"diff_epitome": float(beta) * int(seed), "rouge_l": 1.0})
        for beta in ("0.1", "0.2") for seed in ("13", "14")
    ]  # fmt: skip


def test_an_experiment_that_fails_is_named(small):
    with pytest.raises(StudyError, match=r"1 of 1 experiments did not come to their end: `dvc queue logs small-"):
        run("dpo.beta=-1", "seed=13")


def test_what_is_not_there_is_named(small):
    with pytest.raises(StudyError, match=r"studies/large\.yaml is missing; studies: small"):
        read("large")
    with pytest.raises(StudyError, match="small has no scale paper: tiny"):
        experiments("small", read("small"), "paper", [])
    with pytest.raises(StudyError, match="no experiment of small is done at this commit"):
        collect("small", read("small"), points(), {})
    path = Path("studies/small.yaml")
    path.write_text(STUDY.replace("x: dpo.beta", "x: dpo.gamma"))
    with pytest.raises(StudyError, match=r"shown\.x = 'dpo\.gamma' is no key of the grid"):
        read("small")
    path.write_text(STUDY.replace("title: A small study", "name: A small study"))
    with pytest.raises(StudyError, match=r"small\.yaml: title: "):
        read("small")


def test_threads_are_shared_out():
    assert study.share_out(1, 8) == []
    assert study.share_out(2, 8) == ["hardware.threads=4"]
    assert study.share_out(4, 2) == ["hardware.threads=1"]
