"""The line before each stage, what DVC gets, and what a signal does: `python -m attune repro` in a small pipeline."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import factory
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT

from attune.tools.repro import RUNNING, SKIPPED, TYPICAL, Plan, Progress, dry
from attune.tools.stage_times import TIMES, Time, here, in_words, like, time_of

# Stage `train` waits for a signal where there is a file `wait`, and keeps something when it comes.
TRAIN = """
import pathlib, signal, sys
def stop(*_):
    pathlib.Path("kept").write_text("kept")
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
if pathlib.Path("wait").exists():
    print("waiting", flush=True)
    signal.pause()
pathlib.Path("model").write_text(pathlib.Path("data").read_text())
"""
PIPELINE = """
stages:
  draw:
    cmd: cat seed > data
    deps: [seed]
    outs: [data]
  train:
    cmd: python train.py
    deps: [data, train.py]
    outs: [model]
  score:
    foreach: [a, b]
    do:
      cmd: "echo score of ${item} && cat model > ${item}"
      deps: [model]
      outs: ["${item}"]
"""
STAGES = ["draw", "train", "score@a", "score@b"]


def repro(folder, *arguments, shell="/bin/sh", **options):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PYTHONPATH": str(ROOT), "SHELL": shell, "PATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "attune", "repro", *arguments], cwd=folder, env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def done(process):
    """The exit status, what was printed, and the stages of the lines."""
    out, err = process.communicate()
    return process.returncode, out, [line.split(" · ")[0] for line in err.splitlines() if line.startswith("[")]


@pytest.fixture
def project(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    for name, text in {"dvc.yaml": PIPELINE, "train.py": TRAIN, "seed": "1"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_broken_file_of_replies_is_found_before_any_stage_runs(project):
    theirs = "  theirs:\n    model: theirs.jsonl\n    instruction: data/dialogues\n"
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("\nvariants:\n", f"\nvariants:\n{theirs}"), encoding="utf-8")
    (project / "theirs.jsonl").write_text('{"answer": "Oh."}\n')
    process = repro(project)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: theirs.jsonl:1: no column reply; found answer") and not (project / "data").exists()


@pytest.mark.slow
def test_each_stage_that_runs_has_its_line_and_its_time_is_kept(project):
    status, out, lines = done(repro(project))
    assert (status, lines) == (0, ["[1/4] draw", "[2/4] train", "[3/4] score@a", "[4/4] score@b"])
    assert "Running stage 'draw':\n> cat seed > data\n" in out and "score of b\n" in out
    assert list(json.loads((project / TIMES).read_text())) == STAGES
    # Targets and options are DVC's; a stage of another target is not counted.
    status, out, lines = done(repro(project, "--", "--force", "draw"))
    assert (status, lines) == (0, ["[1/1] draw"])
    (project / "seed").write_text("2")
    (project / "b").unlink()
    assert done(repro(project, "train"))[2] == ["[1/2] draw", "[2/2] train"]
    # What did not change has a number and no line.
    assert done(repro(project))[2] == ["[3/4] score@a", "[4/4] score@b"]
    assert done(repro(project)) == (0, "Data and pipelines are up to date.\n", [])


FOLDER = """
  one:
    cmd: "mkdir -p both && cp model both/out"
    deps: [model]
    outs: [both/out]
  all:
    cmd: cat both/* > whole
    deps: [both]
    params: [seed, dpo]
    outs: [whole]
"""


def would(*arguments):
    """What --dry lists, by stage."""
    from dvc.cli import parse_args

    head, *lines = dry(parse_args(["repro", "--dry", *arguments])).splitlines()
    assert head == (f"{len(lines)} of 6 stages would run:" if lines else "None of 6 stages would run.")
    return dict(line.strip().split(": ", 1) for line in lines)


@pytest.mark.slow
def test_a_clone_without_data_lists_what_would_run(project, monkeypatch):
    """Where DVC's own --dry fails: stage `all` depends on a folder of an out beside a file of Git."""
    monkeypatch.chdir(project)
    (project / "dvc.yaml").write_text(PIPELINE + FOLDER)
    (project / "both").mkdir()
    (project / "both/kept").write_text("by Git")
    everything = {"draw": "dvc.lock has no run of it", "all": "dvc.lock has no run of it, after one"}
    assert would().items() >= everything.items() and len(would()) == 6
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    assert would() == {}
    for name in ("data", "model", "a", "b", "both/out", "whole"):
        (project / name).unlink()
    shutil.rmtree(project / ".dvc/cache")
    assert would("--allow-missing") == {}
    assert would()["draw"] == "data is not in cache"
    params = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(params.replace("seed: 13\n", "seed: 14\n", 1), encoding="utf-8")
    assert would("--allow-missing") == {"all": "params seed"}
    (project / "train.py").write_text("# changed")
    command = [sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing"]
    assert subprocess.run(command, capture_output=True).returncode == 255, "DVC lists it: dry_run.py can go"
    assert would("--allow-missing") == {
        "train": "train.py",
        "score@a": "after train",
        "score@b": "after train",
        "one": "after train",
        "all": "params seed, after one",
    }


@pytest.mark.slow
def test_the_exit_status_is_that_of_dvc(project):
    (project / "train.py").write_text("import sys\nsys.exit(3)\n")
    for arguments, status in ((["nothing"], 255), (["--", "--nothing"], 254), ([], 255)):
        ours, dvc = repro(project, *arguments), [sys.executable, "-m", "dvc", "repro", *arguments[-1:]]
        assert done(ours)[0] == status == subprocess.run(dvc, cwd=project, capture_output=True).returncode
    # The stage that failed has no time.
    assert list(json.loads((project / TIMES).read_text())) == ["draw"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_sigterm_reaches_the_stage_and_dvc_ends_after_it(project, shell):
    """Of the shells that DVC starts, dash waits for the stage and bash becomes it."""
    (project / "wait").touch()
    process = repro(project, shell=shutil.which(shell))
    for line in process.stdout:
        if line == "waiting\n":
            break
    process.send_signal(signal.SIGTERM)
    error = process.communicate()[1]
    assert process.returncode == 255 and "exited with 3" in error
    assert (project / "kept").exists() and not (project / "model").exists()


def stage(progress, event, name):
    progress.emit(logging.LogRecord("dvc.stage", logging.INFO, "", 0, event, (name,), None))


PARAMS = factory.params()


def times(**seconds):
    """The times of stages that ran with `PARAMS`; `@` is `_`."""
    names = {key.replace("_", "@"): value for key, value in seconds.items()}
    return {name: time_of(name, value, PARAMS, lambda unit, name: None) for name, value in names.items()}


CHAIN = Plan({"base": set(), "sft@sft": {"base"}, "dpo@e1": {"sft@sft"}, "mmlu@base": {"base"}}, {"base", "sft@sft"})


def test_the_time_left_is_that_of_the_stages_that_may_still_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    progress = Progress(CHAIN, {}, times(base=100, sft_sft=60, dpo_e1=300), PARAMS)
    stage(progress, RUNNING, "base")
    # Nobody knows of mmlu@base, which depends on a stage that runs.
    assert capsys.readouterr().err == "[1/4] base · 0 s so far · at least 8 min left\n"
    stage(progress, RUNNING, "mmlu@base")
    assert capsys.readouterr().err == "[2/4] mmlu@base · 0 s so far · at least 6 min left\n"
    progress = Progress(CHAIN, {}, times(base=100, sft_sft=60, dpo_e1=300, mmlu_base=20), PARAMS)
    stage(progress, SKIPPED, "base")
    stage(progress, RUNNING, "sft@sft")
    # Nothing but sft@sft changed, so that mmlu@base will not run.
    assert capsys.readouterr().err == "[2/4] sft@sft · 0 s so far · about 6 min left\n"
    stage(progress, RUNNING, "dpo@e1")
    assert progress.times["sft@sft"].seconds == 0


def test_in_the_first_run_the_times_of_another_machine_are_corrected_by_the_speed_of_this_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    progress = Progress(CHAIN, TYPICAL, {}, PARAMS)
    assert progress.expected("dpo@e1") == TYPICAL["dpo"] and progress.expected("other") is None
    stage(progress, RUNNING, "sft@sft")
    progress.begun -= 2 * TYPICAL["sft"]
    progress.end()
    assert progress.expected("dpo@e1") == pytest.approx(2 * TYPICAL["dpo"], rel=0.01)
    # What has run here is known.
    assert progress.expected("sft@sft") == pytest.approx(2 * TYPICAL["sft"], abs=1)


def of(**changes):
    """`PARAMS` with other values of keys, as `pairs_limit=5`."""
    sections = {}
    for key, value in changes.items():
        section, _, name = key.partition("_")
        sections[section] = replace(sections.get(section, getattr(PARAMS, section)), **{name: value})
    return replace(PARAMS, **sections)


@pytest.mark.parametrize(
    ("stage", "ran", "amount", "wanted", "seconds"),
    [
        ("sft@sft", of(sft_epochs=2), None, of(sft_epochs=0.5), 25),
        ("dpo@e1", of(pairs_limit=500), 480, of(pairs_limit=500), 100),
        ("dpo@e1", of(pairs_limit=500), 500, of(pairs_limit=1000), 200),
        # Of all, as many as there were; nobody knows how many there are beyond a limit.
        ("dpo@e1", of(pairs_limit=None), 400, of(pairs_limit=100), 25),
        ("dpo@e1", of(pairs_limit=None), 400, of(pairs_limit=9000), 100),
        ("dpo@e1", of(pairs_limit=None), None, of(pairs_limit=100), None),
        ("dpo@e1", of(pairs_limit=500), 500, of(pairs_limit=None), None),
        ("scores@sft-dpo-epitome", of(generate_limit=200), 200, of(generate_limit=100), 50),
        ("mmlu@base", of(mmlu_limit=None), 246, of(mmlu_limit=123), 50),
        ("classifier@epitome", of(), None, of(pairs_limit=1), 100),
        ("dpo@e1", of(), None, of(model_name="zephyr-7b"), None),
        ("dpo@e1", of(), None, of(compute_device="cuda"), None),
        ("dpo@e1", of(), None, of(pairs_rule="random"), 100),
        ("pairs@e1", of(), None, of(pairs_rule="random"), 100),
    ],
)
def test_a_time_is_scaled_by_the_work(stage, ran, amount, wanted, seconds):
    time = time_of(stage, 100.0, ran, lambda unit, name: amount)
    assert time.expected(stage, wanted) == (None if seconds is None else pytest.approx(seconds))


def test_the_amount_of_work_in_the_working_tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert here("pairs", "e1") is here("replies", "sft") is here("questions", "sft") is None
    for path, values in {
        "metrics/pairs/e1.json": {"pairs": 7}, "metrics/mmlu/sft.signature.json": {"questions": "100", "subjects": "5"}
    }.items():  # fmt: skip
        Path(path).parent.mkdir(parents=True)
        Path(path).write_text(json.dumps(values))
    Path("data/replies").mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a", "b"]}), "data/replies/sft-dpo.parquet")
    assert time_of("scores@sft-dpo-epitome", 1, PARAMS, here).amount == 2
    assert (here("pairs", "e1"), here("questions", "sft")) == (7, 20)
    assert time_of("sft@sft", 1, of(sft_epochs=0.5), here) == Time(1, like("sft@sft", PARAMS), 0.5, 0.5)


def test_every_stage_of_the_default_run_has_a_time(monkeypatch):
    from attune.tools.pipeline import stages_in_order

    monkeypatch.chdir(ROOT)
    assert {name.partition("@")[0] for name in stages_in_order()} == TYPICAL.keys()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (45.4, "45 s"), (190, "3 min 10 s"), (240, "4 min"), (3900, "1 h 5 min")]
)
def test_a_time_in_words(seconds, text):
    assert in_words(seconds) == text
