"""The page `docs/extend.md`: its code blocks are added to a copy of the project, and run there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import ROOT, project

PAGE = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^(At the end of )?`([\w/.]+)`:\n\n```\w+\n(.*?)```$", PAGE, flags=re.MULTILINE | re.DOTALL)
TOPICS = {"work": "My boss shouts at me.", "home": "My flat is cold.", "health": "I do not sleep."}
# The stages that a user would run with DVC, in one process, which saves the imports of five.
STAGES = """
import runpy, sys
from attune.config.params import compose
compose(["model=mine", "corpus=chats", "pairs.rule=other_topic", "pairs.limit=6", "evaluate.resamples=100"])
for module, *arguments in (["download"], ["prepare"], ["pairs", "e1"], ["pairs", "e2"]):
    sys.argv = [module, *arguments]
    runpy.run_module(f"stages.{module}", run_name="__main__")
"""
SCORING = """
from pathlib import Path
import pandas as pd
from attune.config.params import load
from attune.data.examples import read_examples
from attune.pairs.held_out import held_out_pairs
from attune.report.tables import VARIANT_COLUMNS, table
from attune.scoring.text.scores import evaluate, score
params = load()
test = read_examples(Path("data/dialogues/test.parquet"), params.context)
pairs = {pair.id: pair.rejected for pair in held_out_pairs(test, test, params)}
rows = [{"id": e.id, "label": e.label, "reference": e.target, "reply": e.target.replace(".", "?") if i else e.target,
         "rejected": pairs[e.id], "reference_logp": -1.0, "rejected_logp": -2.0} for i, e in enumerate(test)]
replies = pd.DataFrame(rows)
scores = score(replies, {})
Path("data/scores/text").mkdir(parents=True)
scores.to_parquet("data/scores/text/base.parquet")
metrics = evaluate(replies, scores)
assert abs(metrics["questions"] - 100 * (len(rows) - 1) / len(rows)) < 1e-9, metrics
print(table("variant", {"base": metrics}, VARIANT_COLUMNS))
"""


def chat(number: int, split: str) -> str:
    topic = list(TOPICS)[number % 3]
    replies = (f"That is hard. I hear you, {split} {number}.", f"Take your time, {topic} {number}.")
    turns = [TOPICS[topic], replies[0], "Thank you.", replies[1]]
    return json.dumps({"id": f"{split}-{number}", "split": split, "topic": topic, "turns": turns})


def python(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project with the blocks of the page in it, and a corpus for them."""
    folder = tmp_path_factory.mktemp("extended")
    project(folder)
    for package in ("attune", "stages"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data/sample", folder / "data/sample")
    for table in [*(ROOT / "data").glob("*.csv"), *(ROOT / "data").glob("*.yaml")]:
        shutil.copy(table, folder / "data")
    for at_end, name, code in BLOCKS:
        path = folder / name
        assert path.exists() is bool(at_end), name
        before = path.read_text(encoding="utf-8") + "\n" if at_end else ""
        path.write_text(before + code, encoding="utf-8")
    (folder / "my_data/chats").mkdir(parents=True)
    lines = [chat(n, split) for split, count in (("train", 12), ("valid", 3), ("test", 4)) for n in range(count)]
    (folder / "my_data/chats/chats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "my_data/chats/LICENCE").write_text("CC0 1.0\n", encoding="utf-8")
    python(folder, "-c", STAGES)
    return folder


def test_the_page_adds_four_things_in_fewer_than_forty_lines_of_code():
    assert [name for _, name, _ in BLOCKS] == [
        "attune/corpora/readers/chats.py",
        "conf/corpus/chats.yaml",
        "conf/model/mine.yaml",
        "attune/pairs/other_topic.py",
        "attune/scoring/text/custom.py",
    ]
    assert len([line for *_, code in BLOCKS for line in code.splitlines() if line.strip()]) < 40
    assert PAGE.count("```") == 2 * len(BLOCKS)


def test_the_corpus_is_read_and_its_licence_kept(extended):
    metrics = json.loads((extended / "metrics/data.json").read_text(encoding="utf-8"))
    assert (metrics["train_dialogues"], metrics["test_dialogues"]) == (12, 4)
    assert json.loads((extended / "metrics/labels.json").read_text(encoding="utf-8"))["train_label_work"] == 4
    assert {one["licence"] for one in json.loads((extended / "data/manifest.json").read_text())} == {"CC0 1.0"}


def test_a_line_of_the_corpus_that_does_not_fit_is_named(extended, tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"id": "a"}\n', encoding="utf-8")
    code = f"from pathlib import Path; from attune.corpora.readers.chats import read; read(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=extended, capture_output=True, text=True)
    assert "chats.jsonl:1: KeyError('turns')" in done.stderr


def test_the_rule_makes_the_pairs_of_every_epoch(extended):
    first, second = (pq.read_table(extended / f"data/pairs/e{n}.parquet").to_pylist() for n in (1, 2))
    assert len(first) == len(second) == 6 and [one["id"] for one in first] == [one["id"] for one in second]
    assert all(one["label"] != one["rejected_label"] for one in first + second)
    assert [one["rejected_id"] for one in first] != [one["rejected_id"] for one in second]
    metrics = json.loads((extended / "metrics/pairs/e2.json").read_text(encoding="utf-8"))
    same = sum(one["rejected"] == other["rejected"] for one, other in zip(first, second, strict=True))
    assert metrics["pairs"] == 6 and metrics["repeated_rejected"] == pytest.approx(100 * same / 6, abs=1e-4)


def test_the_metric_has_a_mean_a_column_and_an_interval(extended):
    shown = python(extended, "-c", SCORING)
    assert "asks % ↑" in shown.splitlines()[0]
    python(extended, "-m", "stages.intervals", "base", "text")
    bounds = json.loads((extended / "metrics/intervals/text/base.json").read_text(encoding="utf-8"))
    assert 0 <= bounds["questions.low"] < 75 < bounds["questions.high"] <= 100
