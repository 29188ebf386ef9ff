"""Studies: the grid, DVC's queue and the pages; on a small project that DVC runs."""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
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
from attune.tools.runs import Run, folder
from attune.tools.stage_times import read_times, time_of, write_times
from attune.tools.study_differences import NOT_CACHED, Difference, differences, draws, of_values, paired
from attune.tools.study_differences_page import section
from attune.tools.study_plan import COLUMNS, Grid, Shown, grid, read
from attune.tools.study_results import Row, collect, figure
from attune.tools.study_time import estimate, expected

STUDY = """
title: A small study
source: nobody
targets: []
shown: {kind: spread, variants: [sft], metrics: [diff_epitome, rouge_l], x: dpo.beta}
scales:
  small: [lora.r=4, 'dpo.beta=0.1,0.2', 'seed=13,14']
"""
NAMED = """
title: Two settings
source: nobody
targets: []
shown: {kind: differences, variants: [sft], metrics: [rouge_l, diff_epitome], reference: low}
settings: {low: [dpo.beta=0.1, lora.r=4], high-beta: [dpo.beta=0.2, lora.r=4]}
scales:
  small: ['seed=13,14']
"""
# Leaves a line for each time that it runs, outside of the project that DVC copies. With a negative beta it fails, once
# the one of the other seed runs, too: a pipe opens when both of its ends are open.
SCORE = """
import json, os, pathlib, pyarrow.parquet, signal, sys, yaml
params = yaml.safe_load(open("params.yaml"))
beta, seed, threads = params["dpo"]["beta"], params["seed"], params["compute"]["threads"]
with open(sys.argv[1], "a") as log: log.write(f"{beta} {seed} {threads}\\n")
if beta < 0:
    signal.alarm(300)
    open(sys.argv[1] + ".pipe", "r" if seed == 13 else "w").close()
    sys.exit("beta is negative")
value = beta * seed
epitome = {"diff_er": value, "diff_ex": 2 * value, "diff_ip": 3 * value}
for name, values in (("epitome", epitome), ("text", {"rouge_l": 10.0})):
    pathlib.Path("metrics", name).mkdir(parents=True, exist_ok=True)
    json.dump(values, open(f"metrics/{name}/sft.json", "w"))
    pathlib.Path("data/scores", name).mkdir(parents=True, exist_ok=True)
    # Of four examples, of which each scores otherwise, the fourth not at all.
    columns = {key: [mean + i for i in (-1, 0, 1)] + [None] for key, mean in values.items()}
    pyarrow.parquet.write_table(pyarrow.table({"id": list("abcd"), **columns}), f"data/scores/{name}/sft.parquet")
"""
NAMES = {name.stem: name for name in (ROOT / "studies").glob("*.yaml")}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A project of one stage, with a study and its figure; the working directory."""
    root, log = tmp_path / "project", tmp_path / "log"
    (root / "studies").mkdir(parents=True)
    (root / "studies/small.yaml").write_text(STUDY)
    (root / "studies/named.yaml").write_text(NAMED)
    (root / "params.yaml").write_text(
        "seed: 13\ndpo: {beta: 0.1}\nlora: {r: 8}\nscorers: [text, epitome]\ncompute: {threads: 2}\n"
        "context: {targets: last}\nevaluate: {resamples: 100}\n"
    )
    (root / "score.py").write_text(SCORE)
    (root / "dvc.yaml").write_text(
        f"stages:\n  score:\n    cmd: {sys.executable} score.py {log}\n    deps: [score.py]\n"
        "    params: [seed, dpo.beta, lora.r, compute.threads]\n    outs: [data/scores]\n"
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

    monkeypatch.setattr(study, "PAUSE", 1.0)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for kind, key in itertools.product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
        monkeypatch.setenv(f"GIT_{kind}_{key}", "test@test")
    subprocess.run(["git", "init", "-q"], check=True)
    Repo.init().close()
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", "commit", "-qm", "one"], check=True)
    return files


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """The project's pipeline in Git and DVC, with the studies of `files`; the working directory."""
    project(tmp_path)
    (tmp_path / ".dvc/config").write_text("")
    (tmp_path / "studies").mkdir()
    for name, text in (("small", STUDY), ("named", NAMED)):
        (tmp_path / f"studies/{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")


def settings(*overrides):
    return grid("small", read("small"), "small", overrides)


@pytest.mark.parametrize("name", NAMES)
def test_every_study_composes(name, tmp_path, monkeypatch):
    """With the stages that it names, and each of its metrics measured by one of them."""
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = read(name, ROOT / "studies")
    for scale in found.scales:
        for family in grid(name, found, scale, []).families.values():
            [last] = get_hydra_sweeps({"params.yaml": family})[-1].values()
            compose(last)
        params = load()
        encoders = (params.encoder.name, bertscore_encoder(params).name)
        published = ("roberta-base", "FacebookAI/roberta-large")
        assert encoders == (published if scale == "paper" else ("all-MiniLM-L6-v2",) * 2)
        stages = set(stages_in_order(found.targets))
        assert {"base", *found.targets} <= stages
        for variant in found.shown.variants:
            # Every metric has a column, and the stage that measures it is one of the experiment's.
            assert {measuring(metric, variant) for metric in found.shown.every} <= stages


def measuring(metric, variant):
    """The stage, by the table of the report in which the metric is."""
    assert metric in COLUMNS
    if metric == "mmlu" or metric.startswith("answer_"):
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


def test_named_settings_are_an_axis_of_lists_of_overrides(files):
    named = read("named")
    made = grid("named", named, "small", ["seed=7"])
    assert made.families == {
        "-low": ["seed=7", "dpo.beta=0.1", "lora.r=4"], "-high-beta": ["seed=7", "dpo.beta=0.2", "lora.r=4"]
    }  # fmt: skip
    assert made.axes == ["seed"]
    # Of one study, whatever settings are run, all of which are collected; with other settings it is another one.
    one = grid("named", named, "small", ["setting=low"])
    assert list(one.families) == ["-low"] and one.name == made.name
    assert one.setting_of(f"{one.name}-high-beta-1") == "high-beta"
    Path("studies/named.yaml").write_text(NAMED.replace("beta=0.2", "beta=0.3"))
    assert made.name != grid("named", read("named"), "small", []).name
    with pytest.raises(UserError, match="named has no setting lower: low, high-beta"):
        grid("named", named, "small", ["setting=lower"])
    with pytest.raises(UserError, match=r"lora\.r is what the settings of named differ in: choose some by setting=low"):
        grid("named", named, "small", ["lora.r=2"])
    # A key of one setting alone may have another value in the others.
    Path("studies/named.yaml").write_text(NAMED.replace("[dpo.beta=0.1, lora.r=4]", "[dpo.beta=0.1]"))
    both = grid("named", read("named"), "small", ["lora.r=2"]).settings
    assert ["lora.r=2" in both["low"], "lora.r=4" in both["high-beta"]] == [True, True]
    with pytest.raises(UserError, match="small has no setting low: it has none"):
        settings("setting=low")
    Path("studies/named.yaml").write_text(NAMED.replace("reference: low", "reference: high"))
    with pytest.raises(UserError, match=r"shown\.reference: high is no setting of scale small: low, high-beta"):
        read("named")


def test_files_of_ones_own_that_no_experiment_would_find_are_named_before_anything_is_queued(files):
    subprocess.run(["git", "init", "-q"], check=True)
    for name in ("conf", ".dvc", "data/sample/epitome"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("cache", "tmp"))
    for path in ("my_data/.gitignore", "my_data/messages/a.jsonl", "my_data/pairs.jsonl"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    subprocess.run(["git", "add", "my_data/.gitignore", "data"], check=True)
    overrides = ["corpus=messages", "seed=13,14"]
    named = Grid("s", overrides, ["seed"], {"table": [*overrides, "pairs.table=my_data/pairs.jsonl"]}, ["table"])
    with pytest.raises(UserError) as found:
        study.require_tracked(named)
    dialogues, table = str(found.value).splitlines()
    assert dialogues.startswith("my_data/messages is tracked by neither") and "`dvc add my_data/messages`" in dialogues
    assert table.startswith("my_data/pairs.jsonl is tracked by neither")
    subprocess.run(["git", "add", "my_data"], check=True)
    study.require_tracked(named)


def test_the_name_of_an_experiment_has_its_setting(files):
    made = Grid("s-1a2b", [], [], {"policy": [], "policy-fixed": [], "fixed": []})
    for end, setting in {
        "policy": "policy", "policy-2": "policy", "c0ffee-policy-12": "policy", "c0ffee-policy-fixed": "policy-fixed",
        "policy-fixed-3": "policy-fixed", "c0ffee-fixed-1": "fixed",
    }.items():  # fmt: skip
        assert made.setting_of(f"s-1a2b-{end}") == setting
    with pytest.raises(UserError, match=r"s-1a2b-x-1 names none of the settings policy, policy-fixed, fixed"):
        made.setting_of("s-1a2b-x-1")
    assert settings().setting_of("small-1") is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'seed=13,14'", "lora.r=4", "scale small has no seed: add seed=13,14,15"),
        ("high-beta: [dpo.beta=0.2", "low-2: [dpo.beta=0.2", "low and low-2 could name the same experiment"),
        ("beta=0.2", "'dpo.beta=0.2,0.3'", r"settings\.high-beta: dpo\.beta has several values"),
        ("small: [", "small: ['recipe=empo,dbt', ", "recipe with several values cannot be told in the results"),
    ],
)
def test_a_study_whose_results_could_not_be_told_apart_is_refused(files, old, new, message):
    text = NAMED.replace("dpo.beta=0.2", "'dpo.beta=0.2,0.3'") if old == "beta=0.2" else NAMED.replace(old, new)
    Path("studies/named.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read("named")


def test_values_that_the_command_adds_are_an_axis_and_a_list_is_none(files):
    assert settings("lora.r=2,4").axes == ["lora.r", "dpo.beta", "seed"]
    assert settings("lora.target_modules=[q_proj,v_proj]").axes == settings().axes
    Path("studies/small.yaml").write_text(STUDY.replace("x: dpo.beta", "x: seed"))
    with pytest.raises(UserError, match=r"'seed' is no axis of scale small other than the seed: dpo\.beta"):
        read("small")


def test_the_variants_of_a_table_are_compared_and_what_was_measured_otherwise_is_left_out(tmp_path):
    """Of two seeds; the second has no scores of one variant, and another BERTScore of the other."""
    shown = Shown("table", ["base", "sft", "sft-dpo"], ["rouge_l"], also=["reply_words"])
    rows = [Row(f"s-{seed}", {}, seed, variant, "", {}) for seed in (1, 2) for variant in shown.variants]
    for row in rows:
        root = tmp_path / row.experiment
        for name in ("data/scores/text", "metrics/text"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "params.yaml").write_text("{scorers: [text], context: {targets: last}}")
        if (row.seed, row.variant) != (2, "base"):
            better = {"base": 0.0, "sft": 1.0, "sft-dpo": 3.0}[row.variant] + row.seed
            scores = {"id": list("abc"), "rouge_l": [better, better + 5, better + 2], "reply_words": [2, 2, 2]}
            pd.DataFrame(scores).to_parquet(root / f"data/scores/text/{row.variant}.parquet")
        signature = {"rouge": "1", "examples": "3"} | ({"rouge": "2"} if (row.seed, row.variant) == (2, "sft") else {})
        (root / f"metrics/text/{row.variant}.signature.json").write_text(json.dumps(signature))
    found, left = differences(rows, shown, {name: folder(tmp_path / name) for name in ("s-1", "s-2")})
    seen = [(one.variant, one.less, one.metric, round(one.value, 6), len(one.by_seed), one.corrected) for one in found]
    assert seen == [
        (variant, less, metric, value, 1, p)
        for variant, less, rouge in (("sft", "base", 1), ("sft-dpo", "base", 3), ("sft-dpo", "sft", 2))
        for metric, value, p in (("rouge_l", rouge, pytest.approx(2 / 2001)), ("reply_words", 0, None))
    ]
    assert left == {NOT_CACHED: ["s-2 (base: text)"], "measured differently (rouge)": ["s-2"]}
    page = section(found, left, shown, "s")
    assert re.search(r"\| sft-dpo less sft *\| *\+2.00 \(\+2.00 to \+2.00\)\*\* \| *\+0.0 \(\+0.0 to \+0.0\) \|", page)
    assert "Not compared, since measured differently (rouge): s-2." in page


def test_each_setting_is_compared_with_its_own_references():
    shown = Shown("differences", ["sft"], ["rouge_l"], reference={"b": "a", "c": ["b", "a"], "d": "e"})
    rows = [Row(f"s-{setting}", {"setting": setting, "lora.r": 2}, 1, "sft", "", {}) for setting in "abcd"]
    compared = [(row.experiment, other and other.experiment, less) for row, other, less in of_values(rows, shown)]
    assert compared == [("s-b", "s-a", "a"), ("s-c", "s-b", "b"), ("s-c", "s-a", "a"), ("s-d", None, "e")]
    runs = {row.experiment: Run("", {"context": {"targets": "last"}}, lambda file: None) for row in rows}
    left = differences(rows, shown, runs)[1]
    assert left["e has not finished with the same seed and values"] == ["s-d"]
    one = Difference(rows[2].point, "sft", "b", "rouge_l", -0.001, 2, 0.5, {1: 1.5}, 9)
    other = Difference(rows[1].point, "sft", "a", "rouge_l", -1, 2, 0.5, {1: 1.5, 2: 1}, 9)
    text = re.sub(" +", " ", section([one, other], {}, shown, "s"))
    assert "| c less b, 2, sft, 1 of 2 seeds | +1.50 (+0.00 to +2.00) |" in text
    assert "| b less a, 2, sft | +1.25 (-1.00 to +2.00) |" in text
    within = replace(one, less="base", axis=None)
    assert "| c, 2, sft less base |" in re.sub(" +", " ", section([within], {}, shown, "s"))


def test_each_value_of_x_is_compared_with_the_reference():
    shown = Shown("lines", ["sft"], ["rouge_l"], x="lora.r", reference={"quick": 16, "paper": 1024}).at("quick")
    rows = [Row(f"s-{r}-{seed}", {"lora.r": r}, seed, "sft", "", {}) for r in (4, 16) for seed in (1, 2)]
    compared = [(row.experiment, other and other.experiment, less) for row, other, less in of_values(rows, shown)]
    assert compared == [("s-4-1", "s-16-1", "16"), ("s-4-2", "s-16-2", "16")]
    one = Difference(rows[0].point, "sft", "16", "rouge_l", -1, 2, 0.5, {1: 1.5, 2: 1}, 9, "lora.r")
    text = re.sub(" +", " ", section([one], {}, shown, "s"))
    assert "\n| lora.r 4 less 16, sft | +1.25 (-1.00 to +2.00) |" in text
    assert text.startswith("## Differences between the values of lora.r\n") and "\nTwo values of lora.r with" in text


def test_a_metric_that_cannot_be_compared_still_counts_among_those_looked_at(tmp_path):
    shown = Shown("table", ["base", "sft"], ["rouge_l", "diff_er", "diff_ex", "mmlu"])
    rows = [Row("s-1", {}, 1, variant, "", {}) for variant in shown.variants]
    (tmp_path / "data/scores/text").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("{context: {targets: last}}")
    for variant, value in (("base", 1.0), ("sft", 2.0)):
        frame = pd.DataFrame({"id": list("abc"), "rouge_l": value})
        frame.to_parquet(tmp_path / f"data/scores/text/{variant}.parquet")
    (found,), left = differences(rows, shown, {"s-1": folder(tmp_path)})
    assert (found.metric, found.corrected) == ("rouge_l", pytest.approx(4 * found.p))
    assert left == {NOT_CACHED: [f"s-1 ({variant}: epitome, mmlu)" for variant in shown.variants]}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rouge_l]", "rouge_x]", "shown: rouge_x is no metric of the tables: "),
        ("targets: []", "targets: [evaluate@sft]", "diff_epitome of sft is written by scores@sft-epitome: add it to"),
        ("'dpo.beta=0.1,0.2'", "'dpo.loss=ipo,robust'", r"shown\.x = 'dpo\.loss' has a value that is no number: ipo"),
        ("kind: spread", "kind: table, reference: low", "reference: the kind table compares the variants"),
        (", x: dpo.beta", "", r"shown\.x = None is no axis of scale small other than the seed: dpo\.beta"),
        ("kind: spread", "kind: table", "x is of the kinds lines and spread, and this study is of table"),
        ("spread", "spread, reference: {smal: 0.1}", r"reference: smal is no scale of the study: small"),
        ("spread", "spread, reference: 0.3", r"reference: 0\.3 is no value of dpo\.beta at scale small: 0\.1,0\.2"),
    ],
)
def test_what_a_study_cannot_show_is_named_before_it_runs(files, old, new, message):
    text = STUDY.replace(old, new)
    Path("studies/small.yaml").write_text(text.replace("x: dpo.beta", "x: dpo.loss") if "loss" in new else text)
    with pytest.raises(UserError, match=message):
        read("small")


def test_no_experiment_at_a_time_is_refused(files, capsys):
    with pytest.raises(SystemExit):
        study.main(["run", "small", "-j", "0"])
    assert "argument -j/--jobs: 0 experiments at a time: at least 1" in capsys.readouterr().err


def test_a_figure_has_a_line_for_each_value_of_a_further_axis():
    made = read("empo-figure3", ROOT / "studies")
    rows = [replace(row, point=row.point | {"lora.r": rank}) for row in _rows() for rank in (8, 16)]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure(made, rows)["svg"].decode())
    assert {"sft-dpo, lora.r=8", "sft-dpo, lora.r=16"} <= set(texts)


def test_an_example_without_a_value_on_one_side_is_left_out_of_both():
    sides = {1: (tables([5.0, 1.0, np.nan], list("abc")), tables([5.0, np.nan, 9.0], list("abc")))}
    assert paired(sides, "last")["rouge_l"][:2] == (0, 0)


def test_a_resample_counts_though_a_seed_that_is_not_drawn_has_no_value():
    some = np.array([1.0, *[np.nan] * 5])
    sides = {seed: (tables(some + seed, list("abcdef")), tables(some, list("abcdef"))) for seed in (1, 2, 3)}
    low, high, _, each, examples = paired(sides, "last")["rouge_l"]
    assert (each, low, high, examples) == ({1: 1, 2: 2, 3: 3}, 1, 3, 1)


def tables(values, ids):
    return {"text": pd.DataFrame({"rouge_l": values}, index=ids)}


def test_the_interval_is_over_seeds_and_examples():
    rng = np.random.default_rng(1)
    ids = [f"e{i}" for i in range(200)]
    hard = rng.normal(0, 5, 200)
    noise = rng.normal(0, 1, 200)

    def interval(shifts, spread):
        """Of seeds with these differences; `spread` of the examples', in common to the seeds."""
        sides = {
            seed: (tables(hard + shift + spread * noise, ids), tables(hard, ids)) for seed, shift in enumerate(shifts)
        }
        low, high, p, each, examples = paired(sides, "last")["rouge_l"]
        assert (p < 0.05) == (low > 0 or high < 0)
        assert examples == 200 and list(each.values()) == pytest.approx([x + spread * noise.mean() for x in shifts])
        return low, high

    # Of the seeds alone: what they span. Of the examples alone: the standard error of a mean, however many seeds.
    assert interval([1.0, 2.0, 3.0], 0.0) == pytest.approx((1, 3))
    for shifts in ([1.0], [1.0] * 3):
        low, high = interval(shifts, 2.0)
        assert (high - low) / (2 * 1.96) == pytest.approx(2 * noise.std() / 200**0.5, rel=0.1)
    low, high = interval([1.0, 2.0, 3.0], 2.0)
    assert low < 1.3 and high > 2.7
    low, high = interval([-1.0, 2.0], 0.0)
    assert low < 0 < high


def test_of_k_seeds_one_less_is_drawn_so_that_their_variance_is_that_of_a_mean():
    values = np.array([1.0, 4.0, 2.0, 7.0])
    assert (draws(4, 40_000) @ values).var() == pytest.approx(values.var(ddof=1) / 4, rel=0.03)
    assert draws(1, 3).tolist() == [[1.0]] * 3


def test_seeds_may_have_other_examples():
    sides = {seed: (tables([seed + 1.0] * 4, list(ids)), tables([0.0] * 4, list(ids)))
             for seed, ids in enumerate(("abcd", "cdef"))}  # fmt: skip
    # An example that the other setting lacks is left out.
    sides[2] = (tables([3.0, 99.0], ["g", "h"]), tables([0.0], ["g"]))
    low, high, _, each, examples = paired(sides, "last")["rouge_l"]
    assert (list(each.values()), examples, low, high) == ([1, 2, 3], 7, 1, 3)


def test_show_prints_what_would_be_queued_and_how_long_it_takes(whole, capsys):
    study.main(["show", "small", "--scale", "small", "seed=7"])
    name = settings().name
    assert capsys.readouterr().out.startswith(
        f"dvc exp run --queue --name {name} -S lora.r=4 -S dpo.beta=0.1,0.2 -S seed=7\nfinished: none\n"
        "2 experiments of "
    )
    study.main(["show", "named"])
    name = grid("named", read("named"), "small", []).name
    assert capsys.readouterr().out.startswith(
        f"dvc exp run --queue --name {name}-low -S seed=13,14 -S dpo.beta=0.1 -S lora.r=4\n"
        f"dvc exp run --queue --name {name}-high-beta -S seed=13,14 -S dpo.beta=0.2 -S lora.r=4\n"
    )


def test_the_time_of_a_study_is_estimated_from_times_of_such_stages(whole):
    targets = ["evaluate@sft-dpo"]
    named = grid("named", read("named"), "small", ["pairs.limit=50"])
    # Of 12 stages download and base depend on no seed, 5 on the seed, and three rounds of DPO, generate and evaluate on
    # both.
    head = f"4 experiments of {2 + 2 * 5 + 2 * 2 * 5} different stages"
    assert estimate(named, targets).startswith(
        f"{head}; no estimate of the time: no such stage was measured (smollm2, "
    )
    compose(["pairs.limit=100"])
    params = load()
    # Three rounds of each of four experiments, with half of the pairs.
    write_times({"dpo@e1": time_of("dpo@e1", 60, params, lambda unit, name: 100)})
    assert estimate(named, targets).splitlines()[:2] == [
        f"{head}: at least 6 min, one after another",
        "estimated from .cache/stage_times.json of this machine, scaled by epochs, pairs, replies and questions",
    ]
    machine = {"processor": "Abacus", "cores": 3, "gpu": None}
    stages = {"sft@sft": 60, "dpo@e1": 9999, "pairs@e1": 1}
    record = {"command": "python -m attune record one pairs.limit=null", "date": "2026-01-01", "machine": machine}
    others = {"old": {"command": "python -m attune record old no.key=1"}, "none": {"wall_seconds": {}}}
    Path("docs/results").mkdir()
    for name, changes in {"one": {"wall_seconds": stages}, **others}.items():
        Path(f"docs/results/{name}.json").write_text(json.dumps({"wall_seconds": stages} | record | changes))
    lines = estimate(named, targets).splitlines()
    # SFT of two seeds; of pairs, all were drawn, nobody knows how many.
    assert lines[0] == f"{head}: at least 8 min, one after another"
    assert "this machine, docs/results/one.json (Abacus, 3 cores, no GPU), scaled by" in lines[1]
    kinds = "download, prepare, base, pairs drawn from the corpus, generate, evaluate"
    assert lines[2].startswith(f"no estimate of 18 stages ({kinds}): no such stage was measured (smollm2, ")
    write_times({name: time_of(name, 1, params, lambda unit, name: 100) for name in stages_in_order(targets)})
    assert estimate(named, targets).startswith(f"{head}: about ")
    # A random reply is drawn as one of the opposite emotion; a sample of the model takes what a reply takes.
    write_times({"pairs@e1": time_of("pairs@e1", 2, params, lambda unit, name: 100),
                 "generate@sft": time_of("generate@sft", 300, params, lambda unit, name: 100)})  # fmt: skip
    starts = {"e1": "models/sft", "e2": "models/dpo/e1", "e3": "models/dpo/e2"}
    sampled = [f"rounds.{name}.candidates={model}" for name, model in starts.items()]
    ranked = [*sampled, *(f"rounds.{name}.scorer=models/epitome" for name in starts), "pairs.samples=3"]
    for rule, overrides, seconds in (("random", [], 1), ("policy", sampled, 150), ("epitome", ranked, 450)):
        compose([f"pairs.rule={rule}", "pairs.limit=50", *overrides])
        assert expected("pairs@e2", load(), read_times()) == seconds
    with pytest.raises(UserError, match=r"conf/ does not compose with .*no\.key"):
        estimate(grid("named", read("named"), "small", ["no.key=1"]), targets)


@pytest.mark.slow
def test_studies_run_in_dvcs_queue_and_their_pages_hold_the_results(small):
    study.run_grid(settings(), [], 1)
    points = [["0.1", "13", "2"], ["0.1", "14", "2"], ["0.2", "13", "2"], ["0.2", "14", "2"]]
    assert sorted(line.split() for line in small.read_text().splitlines()) == points
    collect("small", read("small"), settings(), study.done(settings().name))
    with Path("reports/studies/small.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dpo.beta"], row["seed"], row["variant"]) for row in rows] == [
        (beta, seed, "sft") for beta in ("0.1", "0.2") for seed in ("13", "14")
    ]
    assert [float(row["diff_epitome"]) for row in rows[:2]] == pytest.approx([2.6, 2.8])
    page = Path("reports/studies/small.md").read_text()
    assert "from 4 experiments, seeds 13, 14" in page
    assert "| dpo.beta=0.1, sft |  2.700 ± 0.141 | 10.00 ± 0.00 |" in page
    assert Path("reports/studies/small.svg").read_text().startswith("<svg")
    assert Path("reports/studies/small.png").read_bytes().startswith(b"\x89PNG")
    Path("studies/small.yaml").write_text(STUDY.replace("x: dpo.beta", "x: dpo.beta, reference: 0.1"))
    collect("small", read("small"), settings(), study.done(settings().name))
    page = Path("reports/studies/small.md").read_text()
    assert "| dpo.beta 0.2 less 0.1, sft | +2.700 (+2.600 to +2.800)** | +0.00 (+0.00 to +0.00) |" in page
    shown = dvc("plots", "show", "--json")["data"]["Small"][0]["content"]
    assert [(one["dpo.beta"], one["field"], one["dvc_inferred_y_value"]) for one in shown["data"]["values"]] == [
        (row["dpo.beta"], metric, row[metric]) for metric in ("diff_epitome", "rouge_l") for row in rows
    ]
    assert (shown["title"]["text"], shown["encoding"]["x"]["title"]) == ("Small", "dpo.beta")
    assert dvc("plots", "diff", "HEAD", "--json")["data"]["Small"]
    named = grid("named", read("named"), "small", [])
    study.run_grid(named, [], 1)
    # Of points that have already run: they come from the run cache.
    assert len(small.read_text().splitlines()) == 4
    differences_are_paired_by_seed_and_example(named)


def differences_are_paired_by_seed_and_example(made):
    named = read("named")
    collect("named", named, made, study.done(made.name))
    with Path("reports/studies/named.csv").open(newline="") as file:
        assert [(row["setting"], row["seed"]) for row in csv.DictReader(file)] == [
            (setting, seed) for setting in ("low", "high-beta") for seed in ("13", "14")
        ]
    with Path("reports/studies/named.differences.csv").open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    # Twice the mean of beta * seed: examples differ by the same in both settings, seeds do not.
    row = rows["diff_epitome"]
    assert (row["setting"], row["seeds"], row["examples"]) == ("high-beta", "13 14", "3")
    assert [float(row[key]) for key in ("difference", "low", "high")] == pytest.approx([2.7, 2.6, 2.8])
    assert float(rows["rouge_l"]["difference"]) == float(rows["rouge_l"]["high"]) == 0
    # Of two metrics (Holm); the smallest p-value of 2,000 resamples is 2 / 2,001, and some resamples have no value.
    assert [float(row["p"]) for row in rows.values()] == pytest.approx([1, 2 / 2001], rel=0.02)
    assert [float(row["p_holm"]) for row in rows.values()] == pytest.approx([1, 4 / 2001], rel=0.02)
    page = Path("reports/studies/named.md").read_text()
    assert "| high-beta less low, sft | +0.00 (+0.00 to +0.00) | +2.700 (+2.600 to +2.800)** |" in page
    assert "All 2 seeds lie on one side of the truth in 50 % of studies" in page
    drawn = Path("reports/studies/named.svg").read_text()
    assert "high-beta less low" in drawn
    # Without the scores in DVC's cache there is the table alone.
    shutil.rmtree(".dvc/cache")
    collect("named", named, made, study.done(made.name))
    assert f"Not compared, since {NOT_CACHED}: named-" in Path("reports/studies/named.md").read_text()


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
        if (metrics := study.shown.metrics) and study.shown.kind in ("lines", "spread")
    }
    # DVC warns where a file is missing: that of a study which was not run is a header.
    for plot in drawn.values():
        (file,) = plot["y"]
        assert (ROOT / file).read_text(encoding="utf-8").startswith(f"experiment,revision,{plot['x']},seed,variant,")


def _rows():
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


@pytest.mark.slow
def test_experiments_side_by_side_share_the_cores_and_those_that_fail_are_named(small):
    waiting = subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert "2 of 2 experiments failed: `dvc queue status` lists those of small-" in waiting.stderr
    assert sorted(line.split() for line in small.read_text().splitlines()) == [["-1", "13", "3"], ["-1", "14", "3"]]


def test_what_is_not_there_is_named(files):
    with pytest.raises(UserError, match=r"studies/large\.yaml is missing: studies: named, small"):
        read("large")
    with pytest.raises(UserError, match="small has no scale paper: small"):
        grid("small", read("small"), "paper", [])
    with pytest.raises(UserError, match="no experiment of small has finished at this commit"):
        collect("small", read("small"), settings(), {})
    path = Path("studies/small.yaml")
    path.write_text(STUDY.replace("x: dpo.beta", "x: dpo.gamma"))
    with pytest.raises(UserError, match=r"shown\.x = 'dpo\.gamma' is no axis of scale small other than the seed: dpo"):
        read("small")
    path.write_text(STUDY.replace("title: A small study", "name: A small study"))
    with pytest.raises(UserError, match=r"small\.yaml: title: "):
        read("small")


def test_jobs_share_the_cores(files):
    assert study.threads_of(settings(), 1, 8) == []
    assert study.threads_of(settings(), 2, 8) == ["compute.threads=4"]
    assert study.threads_of(settings(), 4, 2) == ["compute.threads=1"]
    assert study.threads_of(settings("compute.threads=3"), 4, 8) == []


@pytest.mark.slow
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
