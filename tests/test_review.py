"""The comment of a pull request, on a small DVC repository with two states of metrics and replies; and the workflow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT, git
from ruamel.yaml import YAML

from attune.runtime.errors import UserError
from attune.runtime.io import write_json, write_text
from attune.tools.review import main

STAGES = """stages:
  one:
    cmd: "true"
    outs:
      - data/replies/sft-dpo.parquet
      - data/scores/text/sft-dpo.parquet
    metrics:
      - metrics/text/sft-dpo.json: {cache: false}
"""
LABELS = ("sad", "joyful", "proud")


def state(rouge_l, texts):
    """Metrics and replies as the stages write them."""
    write_json(Path("metrics/text/sft-dpo.json"), {"rouge_l": rouge_l})
    scores = [{"id": f"test/{i}", "rouge_l": rouge_l} for i in range(len(texts))]
    for path, made in (("data/replies/sft-dpo.parquet", None), ("data/scores/text/sft-dpo.parquet", scores)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).unlink(missing_ok=True)
        if made:
            pq.write_table(pa.Table.from_pylist(made), path)
    rows = [
        {"id": f"test/{i}", "label": LABELS[i % 3], "context": [{"role": "user", "text": f"context {i}", "act": None}],
         "reference": "yes", "reply": text}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), "data/replies/sft-dpo.parquet")


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Of 30 replies 20 differ from those of HEAD, one of them to a text that is no Markdown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    git("init", "-q")
    subprocess.run(["dvc", "init", "-q"], check=True)
    shutil.copy(ROOT / "params.yaml", ".")
    write_text(Path("dvc.yaml"), STAGES)
    state(20.0, [f"old {i}" for i in range(30)])
    subprocess.run(["dvc", "commit", "-fq"], check=True)
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    state(20.5, [f"<b>new</b> {i}" if i < 20 else f"old {i}" for i in range(30)])


def printed(capsys, *arguments):
    main(list(arguments))
    return capsys.readouterr().out


def test_ten_changed_replies_follow_the_metrics(changed, capsys):
    write_text(Path("params.yaml"), Path("params.yaml").read_text(encoding="utf-8").replace("seed: 13", "seed: 14", 1))
    text = printed(capsys, "HEAD", "--name", "main", "--plots", "plots/index.html")
    # Params, verdict, what is better, plots, replies.
    places = [
        text.index(part)
        for part in (
            "- seed: 13 → 14",
            "**Verdict: better. 1 better",
            "| better |",
            "[Plots of both](plots/index.html)",
            "**before:**",
        )
    ]
    assert places == sorted(places)
    assert re.search(r"better \| sft-dpo +\| ROUGE-L ↑ +\| 20\.00 +\| 20\.50 +\| \+0\.50 +\| \+0\.50 to \+0\.50", text)
    assert "20 of 30 replies to the same context differ. Written by a machine, unchecked" in text
    numbers = re.findall(r"\*\*before:\*\* old (\d+)\n\n> \*\*after:\*\* \\<b\\>new\\</b\\> (\d+)$", text, re.MULTILINE)
    assert len(numbers) == 10 and all(before == after and int(before) < 20 for before, after in numbers)
    assert all(f"> **user:** context {number}\n" in text for number, _ in numbers)
    assert sorted(text.count(f"\n{label} (test/") for label in LABELS) == [3, 3, 4]


def test_equal_replies_are_counted(changed, capsys):
    state(20.0, [f"old {i}" for i in range(30)])
    assert "0 of 30 replies to the same context differ." in printed(capsys, "HEAD")


def test_replies_that_the_cache_has_not_are_said_to_be_missing(changed, capsys):
    shutil.rmtree(".dvc/cache")
    assert "The replies of that revision are not in DVC's cache here: `dvc pull` them" in printed(capsys, "HEAD")


def test_what_is_not_there_is_named(changed, capsys):
    with pytest.raises(UserError, match="'dbo' is none of variants: base, sft, sft-dpo"):
        main(["HEAD", "--variant", "dbo"])
    with pytest.raises(UserError, match="nowhere"):
        main(["nowhere"])
    Path("data/replies/sft-dpo.parquet").unlink()
    with pytest.raises(UserError, match="run `dvc repro generate@sft-dpo`"):
        main(["HEAD"])


def test_the_workflow_runs_what_runs_here_and_may_write_no_more_than_a_comment():
    flow = YAML(typ="safe").load((ROOT / ".github/workflows/review.yml").read_text(encoding="utf-8"))
    assert list(flow["on"]) == ["pull_request"] and flow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for job in flow["jobs"].values():
        assert job["timeout-minutes"] and job.get("permissions", {}).keys() <= {"contents", "pull-requests"}
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            # Text of a contributor (a title, a branch) is never pasted into a shell.
            assert "${{" not in step.get("run", "")
            program, *arguments = step.get("run", "gh").split()
            assert program in ("cat", "gh") or (ROOT / program).is_file() or {program, *arguments} <= {"make"} | targets
