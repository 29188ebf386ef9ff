"""A rerun compared with the committed results: equal, within a tolerance, or outside it."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, git

from attune.runtime.errors import UserError
from attune.tools import verify
from attune.tools.verify import Change, hashes, outside

STDERR = {"acc": 25.0, "acc_stderr": 4.0}


@pytest.mark.parametrize(
    ("old", "new", "interval", "far"),
    [
        # The committed value lies in the interval of the new one.
        (16.0, 16.9, (15.9, 17.9), False),
        (16.0, 17.1, (16.1, 18.1), True),
        # An interval that is a point gives no tolerance: 5 % of the value, at least half a point.
        (0.0, 0.4, (0.4, 0.4), False),
        (8.0, 8.4, None, False),
        (8.0, 8.6, None, True),
        (40.0, 41.9, None, False),
        (40.0, 42.1, None, True),
        # A count.
        (20, 20.0, None, False),
        (20, 21, None, True),
        (20.0, None, None, True),
        (None, 20.0, None, True),
    ],
)
def test_a_metric_is_judged_by_its_tolerance(old, new, interval, far):
    assert outside(Change("sft", "x", old, new, interval), {}) is far


@pytest.mark.parametrize(("new", "far"), [(32.5, False), (33.0, True)])
def test_mmlu_is_judged_by_its_standard_error(new, far):
    assert outside(Change("mmlu/sft", "acc", 25.0, new, None), STDERR) is far


def test_a_lock_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"dvc\.lock is missing: commit what `dvc repro` writes"):
        hashes(tmp_path / "dvc.lock")


STAGE = """
import json, pathlib
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/a.json").write_text(json.dumps({"value": VALUE, "count": 3}))
"""


def test_the_committed_pipeline_runs_again_in_a_clone(tmp_path, monkeypatch, capsys):
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
    with pytest.raises(
        UserError, match=r"1 metrics are outside their tolerance: a value; the rerun is in \.cache/verify"
    ):
        verify.main([])
    output = capsys.readouterr().out
    assert output.startswith("1 of 1 outs have other bytes.\nmetrics/a.json\n") and "1 changes against HEAD" in output
    assert json.loads((tmp_path / "metrics/a.json").read_text()) == {"value": 1.0, "count": 3}
    assert json.loads((tmp_path / ".cache/verify/metrics/a.json").read_text())["value"] == 9.0
