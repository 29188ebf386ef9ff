"""A rerun beside what is committed: what is equal, what lies within a tolerance, and what does not."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, git

from attune.runtime.errors import UserError
from attune.tools import verify
from attune.tools.verify import compare, page, tolerance

LOCK = {"base": {"models/base": "aa", "reports/curves/base": "bb"}, "report": {"reports/summary.md": "cc"}}
METRICS = {
    "sft": {"rouge_l": 16.0, "dist_1": 8.0, "words": 20},
    "intervals/sft": {"rouge_l.low": 15.0, "rouge_l.high": 17.0},
    "mmlu/sft": {"acc": 25.0, "acc_stderr": 4.0},
}


def project(folder, lock=LOCK, **changes):
    """A folder with a lock and metrics; `changes` are those of metrics/sft.json or, with a folder, of another file."""
    folder.mkdir()
    stages = {
        key: {"cmd": "x", "outs": [{"path": path, "md5": md5} for path, md5 in outs.items()]}
        for key, outs in lock.items()
    }
    (folder / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    for name, values in METRICS.items():
        path = folder / f"metrics/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {key: value for key, value in changes.items() if key in values}
        path.write_text(json.dumps({**values, **own}))
    (folder / "metrics/sft.signature.json").write_text(json.dumps({"bleu": "x", "count": len(changes)}))
    return folder


def test_equal_projects_have_no_differences(tmp_path):
    found = compare(project(tmp_path / "a"), project(tmp_path / "b"))
    assert (found.outs, found.other_outs, found.metrics, found.differences) == (3, (), 5, ())
    assert page(found) == "3 of 3 outs are equal to the byte.\n5 of 5 metrics are equal."


@pytest.mark.parametrize(
    ("metric", "value", "outside"),
    [
        *(("rouge_l", 16.99, False), ("rouge_l", 17.1, True), ("rouge_l", 14.9, True)),
        *(
            ("dist_1", 8.4, False),
            ("dist_1", 8.6, True),
            ("words", 21, True),
            ("acc", 32.5, False),
            ("acc", 33.0, True),
        ),
        ("rouge_l", None, True),
    ],
)
def test_a_metric_is_judged_by_its_tolerance(metric, value, outside, tmp_path):
    found = compare(project(tmp_path / "a"), project(tmp_path / "b", **{metric: value}))
    [one] = found.differences
    assert (one.metric, one.found, one.outside) == (metric, value, outside)
    assert found.other_outs == () and ("outside" if outside else "within") in page(found)


def test_tolerances():
    assert tolerance("rouge_l", METRICS["sft"], METRICS["intervals/sft"]) == 1
    assert tolerance("empty", {"empty": 0.0}, {"empty.low": 0.0, "empty.high": 0.0}) == 0.5
    assert tolerance("acc", METRICS["mmlu/sft"], {}) == pytest.approx(7.84)
    assert tolerance("share", {"share": 40.0}, {}) == 2 and tolerance("share", {"share": 0.0}, {}) == 0.5
    assert tolerance("pairs", {"pairs": 768}, {}) == 0


def test_outs_of_other_bytes_are_named_and_no_error(tmp_path):
    lock = LOCK | {"base": {"models/base": "ab"}}
    found = compare(project(tmp_path / "a"), project(tmp_path / "b", lock))
    assert found.other_outs == ("models/base", "reports/curves/base")
    assert page(found).startswith("1 of 3 outs are equal to the byte; others: models/base, reports/curves/base.")


def test_a_lock_that_is_missing_is_named(tmp_path):
    project(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"b/dvc\.lock cannot be read"):
        compare(tmp_path / "a", tmp_path / "b")


STAGE = """
import json, pathlib
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/a.json").write_text(json.dumps({"value": VALUE, "count": 3}))
"""


def test_the_committed_pipeline_runs_anew_in_a_clone(tmp_path, monkeypatch):
    """A pipeline of one stage whose committed metric was another code's; the working tree is left alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    git("init", "-q")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q"], check=True)
    stage = {"cmd": f"{sys.executable} a.py", "deps": ["a.py"], "metrics": [{"metrics/a.json": {"cache": False}}]}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"a": stage}}))
    (tmp_path / "a.py").write_text(STAGE.replace("VALUE", "1.0"))
    (tmp_path / ".gitignore").write_text(".cache\n")
    subprocess.run([*dvc, "repro", "-q"], check=True)
    (tmp_path / "a.py").write_text(STAGE.replace("VALUE", "9.0"))
    git("add", "-A")
    git("commit", "-qm", "x")
    (tmp_path / "a.py").write_text("not committed")
    with pytest.raises(UserError, match=r"1 metrics lie outside their tolerance; the rerun is in \.cache/verify"):
        verify.main([])
    assert json.loads((tmp_path / "metrics/a.json").read_text()) == {"value": 1.0, "count": 3}
    assert json.loads((tmp_path / ".cache/verify/metrics/a.json").read_text())["value"] == 9.0
