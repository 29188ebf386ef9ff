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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attune.report.tables import DASH, Metrics
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError
from attune.runtime.io import read_yaml

METRICS = Path("metrics")
INTERVALS = METRICS / "intervals"
HEADINGS = ("metrics", "metric", "old", "new", "change", "95 % interval", "")
CLONE = Path(".cache/verify")
LOCK = Path("dvc.lock")
# By this Python, so that the clone, which has no .venv, runs with the same libraries.
DVC = [sys.executable, "-m", "dvc"]
# Tolerance of a metric without an interval: a share of its value, at least half a percentage point.
RELATIVE, LEAST = 0.05, 0.5


@dataclass(frozen=True)
class Change:
    """A metric that changed: its file below `metrics/` without the suffix, old and new value (None: missing)."""

    file: str
    metric: str
    old: float | None
    new: float | None
    interval: tuple[float, float] | None

    @property
    def within_noise(self) -> bool:
        """Whether the old value lies inside the interval of the new value."""
        if self.interval is None or self.old is None or self.new is None:
            return False
        low, high = self.interval
        return low <= self.old <= high

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table, under `HEADINGS`."""
        change = None if self.old is None or self.new is None else self.new - self.old
        bounds = DASH if self.interval is None else f"{self.interval[0]:.4g} to {self.interval[1]:.4g}"
        note = "within noise" if self.within_noise else ""
        return self.file, self.metric, _number(self.old), _number(self.new), _number(change, "+"), bounds, note


def changes(differences: dict[str, Any], intervals: dict[str, dict[str, float]]) -> list[Change]:
    """The changes in the output of `dvc metrics diff --json`, without those of the intervals themselves.

    Args:
        differences: file to metric to `old` and `new`.
        intervals: file, as `Change` names it, to the content of its file of intervals.
    """
    return [
        Change(file, metric, values.get("old"), values.get("new"), _interval(intervals.get(file, {}), metric))
        for path, metrics in sorted(differences.items())
        if INTERVALS not in Path(path).parents
        for file in [Path(path).relative_to(METRICS).with_suffix("").as_posix()]
        for metric, values in metrics.items()
    ]


def _interval(bounds: dict[str, float], metric: str) -> tuple[float, float] | None:
    ends = bounds.get(f"{metric}.low"), bounds.get(f"{metric}.high")
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def page(changed: Sequence[Change], revision: str) -> str:
    """The changes as a table, and how many of them are within noise."""
    from tabulate import tabulate

    noise = sum(change.within_noise for change in changed)
    count = f"{len(changed)} changes against {revision}, {noise} of them within noise."
    table = tabulate([change.cells for change in changed], HEADINGS, tablefmt="simple", disable_numparse=True)
    return f"{table}\n\n{count}" if changed else count


def compare(revision: str, root: Path = Path()) -> list[Change]:
    """The changes of the metrics in the working tree `root` since `revision`, with the intervals of the tree.

    Raises:
        UserError: DVC does not know the revision or cannot read a metric; a file of intervals is not a JSON object.
    """
    command = [*DVC, "metrics", "diff", "--json", revision]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"dvc metrics diff {revision}: {done.stderr.strip()}")
    folder = root / INTERVALS
    intervals = {path.relative_to(folder).with_suffix("").as_posix(): _read(path) for path in folder.rglob("*.json")}
    return changes(json.loads(done.stdout), intervals)


def _read(path: Path) -> dict[str, float]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): `dvc repro` writes it again once it is deleted") from None


def _number(value: float | None, sign: str = "") -> str:
    return f"{value:{sign}.6g}" if isinstance(value, int | float) else DASH


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
    print(page(changed, "HEAD"))
    far = [change for change in changed if outside(change, _values(CLONE / METRICS / f"{change.file}.json"))]
    if far:
        names = ", ".join(f"{change.file} {change.metric}" for change in far)
        raise UserError(f"{len(far)} metrics are outside their tolerance: {names}; the rerun is in {CLONE}")


def _values(path: Path) -> Metrics:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
