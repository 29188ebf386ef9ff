"""`python -m attune compare` on a small DVC repository with two states of its metrics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import git

from attune.runtime.errors import UserError
from attune.runtime.io import write_json, write_text
from attune.tools.compare import compare, main

STAGES = """stages:
  one:
    cmd: "true"
    metrics:
      - metrics/data.json: {cache: false}
      - metrics/sft.json: {cache: false}
      - metrics/intervals/sft.json: {cache: false}
"""


def metrics(**values):
    write_json(Path("metrics/sft.json"), values)


def intervals(**bounds):
    flat = {
        f"{name}.{side}": value
        for name, pair in bounds.items()
        for side, value in zip(("low", "high"), pair, strict=True)
    }
    write_json(Path("metrics/intervals/sft.json"), flat)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The commit: rouge_l 20, diff_er 1, dist_1 30, gone 5."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    git("init", "-q")
    subprocess.run(["dvc", "init", "-q"], check=True)
    write_text(Path("dvc.yaml"), STAGES)
    write_json(Path("metrics/data.json"), {"test_dialogues": 10})
    metrics(rouge_l=20.0, diff_er=1.0, dist_1=30.0, gone=5.0)
    intervals(rouge_l=(19.0, 21.0), diff_er=(0.9, 1.1))
    git("add", "-A")
    git("commit", "-q", "-m", "first")


@pytest.fixture
def changed(repository):
    """rouge_l moves within its interval, diff_er out of it, dist_1 has none, one metric goes and one comes."""
    metrics(rouge_l=20.5, diff_er=0.5, dist_1=31.0, come=2.0)
    intervals(rouge_l=(19.5, 21.5), diff_er=(0.4, 0.6), come=(1.0, 3.0))
    write_json(Path("metrics/data.json"), {"test_dialogues": 12})


def printed(capsys, *arguments):
    main(list(arguments))
    return capsys.readouterr().out


def cells(text):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {(row[0], row[1].replace("\\", "")): row[2:] for row in rows[2:]}


def test_what_lies_within_noise_is_counted_and_not_shown(changed, capsys):
    text = printed(capsys, "--md")
    assert set(cells(text)) == {
        ("data", "test_dialogues"), ("sft", "diff_er"), ("sft", "dist_1"), ("sft", "gone"), ("sft", "come"),
    }  # fmt: skip
    assert cells(text)["sft", "diff_er"] == ["1", "0.5", "-0.5", "0.4 to 0.6", ""]
    assert cells(text)["sft", "gone"] == ["5", "\u2013", "\u2013", "\u2013", ""]
    assert cells(text)["sft", "come"] == ["\u2013", "2", "\u2013", "1 to 3", ""]
    assert cells(text)["data", "test_dialogues"][2] == "+2"
    assert text.splitlines()[-1] == "6 changes against HEAD, 1 of them within noise; --all shows them."


def test_all_shows_it_and_says_so(changed, capsys):
    text = printed(capsys, "--md", "--all")
    assert cells(text)["sft", "rouge_l"] == ["20", "20.5", "+0.5", "19.5 to 21.5", "within noise"]
    assert text.splitlines()[-1] == "6 changes against HEAD, 1 of them within noise."


def test_plain_text_has_the_same_rows_in_columns(changed, capsys):
    lines = printed(capsys, "--all").splitlines()
    starts = [lines[0].index(heading) for heading in ("metric ", "old", "new", "change", "95 %")]
    row = next(line for line in lines if "rouge_l" in line)
    assert [row[start:].split("  ")[0] for start in starts] == ["rouge_l", "20", "20.5", "+0.5", "19.5 to 21.5"]
    assert "|" not in "".join(lines) and len(lines) == 2 + 6 + 2


def test_nothing_changed(repository, capsys):
    assert printed(capsys) == "0 changes against HEAD, 0 of them within noise.\n"


def test_only_noise_leaves_the_count(repository, capsys):
    metrics(rouge_l=20.5, diff_er=1.0, dist_1=30.0, gone=5.0)
    assert printed(capsys) == "1 changes against HEAD, 1 of them within noise; --all shows them.\n"


def test_another_revision(changed, capsys):
    git("add", "-A")
    git("commit", "-q", "-m", "second")
    assert printed(capsys).startswith("0 changes against HEAD,")
    assert "6 changes against HEAD~1, 1 of them within noise" in printed(capsys, "HEAD~1")


def test_the_bounds_belong_to_the_interval(repository):
    intervals(rouge_l=(20.0, 21.0), diff_er=(0.9, 0.9999))
    metrics(rouge_l=20.5, diff_er=0.95, dist_1=30.0, gone=5.0)
    assert {change.metric: change.within_noise for change in compare("HEAD")} == {"rouge_l": True, "diff_er": False}


def test_a_revision_that_is_not_there(repository):
    with pytest.raises(UserError, match=r"^dvc metrics diff nowhere: .*nowhere"):
        compare("nowhere")


def test_intervals_that_are_no_json(changed):
    write_text(Path("metrics/intervals/sft.json"), "[1")
    with pytest.raises(UserError, match=r"intervals/sft\.json"):
        compare("HEAD")
