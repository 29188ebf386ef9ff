"""Run the committed pipeline again on this machine, and compare the results with the committed results.

    python -m attune verify

clones HEAD into `.cache/verify`, runs every stage there without any cache, and compares hashes of outs (of `dvc.lock`)
and metrics. The machine that wrote them, or a machine of the same type, gives equal bytes. Another type of CPU sums in
another order: weights differ in their last digits, some replies in a few words, and metrics agree within tolerances:
the 95 % interval of a metric, 1.96 standard errors of MMLU, `RELATIVE` of the value for others, counts exactly. Exits
with 1 if a metric is outside its tolerance.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from attune.report.tables import Metrics
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError
from attune.runtime.io import read_yaml
from attune.tools.compare import METRICS, Change, compare, page

CLONE = Path(".cache/verify")
LOCK = Path("dvc.lock")
# By this Python, so that the clone, which has no .venv, runs with the same libraries.
DVC = [sys.executable, "-m", "dvc"]
# Tolerance of a metric without an interval: a share of its value, at least half a percentage point.
RELATIVE, LEAST = 0.05, 0.5


def rerun(clone: Path) -> dict[str, str]:
    """Clone HEAD to `clone`, replacing whatever is there, and run every stage in it.

    Returns:
        The committed hash of each out.

    Raises:
        UserError: a stage failed, or no `dvc.lock` is committed.
    """
    shutil.rmtree(clone, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
    committed = hashes(clone / LOCK)
    # The clone has an empty cache, so no result comes from earlier runs.
    if subprocess.run([*DVC, "repro", "--force", "--no-run-cache"], cwd=clone, check=False).returncode:
        raise UserError(f"the pipeline fails in {clone}: run `dvc repro` there to see where")
    return committed


def hashes(lock: Path) -> dict[str, str]:
    """Path to hash of every out in a `dvc.lock`."""
    stages = read_yaml(lock, UserError, "commit what `dvc repro` writes")["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}


def outside(change: Change, values: Metrics) -> bool:
    """Whether a metric changed by more than a different machine can explain.

    Args:
        change: of the metric.
        values: the metrics of its file, with their standard errors.
    """
    if change.old is None or change.new is None:
        return True
    # If all examples have the same value (no empty reply), the interval is a point and gives no tolerance.
    if change.interval is not None and change.interval[0] != change.interval[1]:
        return not change.within_noise
    if f"{change.metric}_stderr" in values:
        tolerance = 1.96 * values[f"{change.metric}_stderr"]
    else:
        tolerance = 0.0 if isinstance(change.old, int) else max(LEAST, RELATIVE * abs(change.old))
    return abs(change.new - change.old) > tolerance


def main(argv: Sequence[str]) -> None:
    """Run the pipeline, print the differences, and check them against the tolerances."""
    command_parser("verify", __doc__).parse_args(argv)
    committed = rerun(CLONE)
    here = hashes(CLONE / LOCK)
    different = sorted(out for out in committed.keys() | here.keys() if committed.get(out) != here.get(out))
    print("\n".join([f"{len(different)} of {len(committed)} outs have other bytes.", *different]))
    changed = compare("HEAD", CLONE)
    print(page(changed, "HEAD", markdown=False, everything=True))
    far = [change for change in changed if outside(change, _values(CLONE / METRICS / f"{change.file}.json"))]
    if far:
        names = ", ".join(f"{change.file} {change.metric}" for change in far)
        raise UserError(f"{len(far)} metrics are outside their tolerance: {names}; the rerun is in {CLONE}")


def _values(path: Path) -> Metrics:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
