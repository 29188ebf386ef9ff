"""Run the committed pipeline anew on this machine, and say whether it gives what is committed.

    python -m attune verify

clones HEAD into `.cache/verify`, reproduces every stage there without any cache, and compares hashes of outs (of
dvc.lock) and metrics. The machine that wrote them, or one of its kind, makes equal bytes. Another type of CPU adds in
another order: weights differ in their last digits and some replies in words, and metrics agree within tolerances: half
the width of a metric's 95 % interval, 1.96 standard errors of MMLU, `RELATIVE` of the value for the others, counts
exactly. Exits with 1 where a metric lies outside.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attune.report.tables import DASH, Metrics, markdown_table
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError

CLONE = Path(".cache/verify")
METRICS = Path("metrics")
LOCK = Path("dvc.lock")
# By this Python, so that the clone, which has no .venv, runs with the same libraries.
DVC = [sys.executable, "-m", "dvc"]
# Of a metric without an interval: a share of its value, at least as much as half a point of a percentage.
RELATIVE, LEAST = 0.05, 0.5
SHOWN = 40


@dataclass(frozen=True)
class Difference:
    """A metric whose value is another one; None: it is not there."""

    file: str
    metric: str
    committed: float | None
    found: float | None
    tolerance: float

    @property
    def outside(self) -> bool:
        """Whether it differs by more than its tolerance."""
        return self.committed is None or self.found is None or abs(self.found - self.committed) > self.tolerance

    @property
    def cells(self) -> list[str]:
        """A row of the table."""
        values = (DASH if value is None else f"{value:.6g}" for value in (self.committed, self.found))
        return [f"{self.file} {self.metric}", *values, f"{self.tolerance:.2g}", "outside" if self.outside else "within"]


@dataclass(frozen=True)
class Comparison:
    """What a rerun gave beside what is committed."""

    outs: int
    other_outs: tuple[str, ...]
    metrics: int
    differences: tuple[Difference, ...]


def compare(committed: Path, found: Path) -> Comparison:
    """Compare two projects that have run: their `dvc.lock` and the files of metrics that both or one of them have.

    Args:
        committed: folder of the one that tolerances are taken from.
        found: folder of the other one.

    Raises:
        UserError: a file cannot be read.
    """
    old, new = _outs(committed / LOCK), _outs(found / LOCK)
    other = sorted(out for out in old.keys() | new.keys() if old.get(out) != new.get(out))
    files = sorted({path.relative_to(root) for root in (committed, found) for path in _metric_files(root)})
    differences: list[Difference] = []
    count = 0
    for file in files:
        before, after = _numbers(committed / file), _numbers(found / file)
        count += len(before.keys() | after.keys())
        bounds = _numbers(committed / METRICS / "intervals" / file.relative_to(METRICS))
        name = file.relative_to(METRICS).with_suffix("").as_posix()
        for metric in sorted(before.keys() | after.keys()):
            one = (before.get(metric), after.get(metric))
            if one[0] != one[1]:
                differences.append(Difference(name, metric, *one, tolerance(metric, before, bounds)))
    return Comparison(len(old.keys() | new.keys()), tuple(other), count, tuple(differences))


def tolerance(metric: str, committed: Metrics, bounds: Metrics) -> float:
    """How far a metric may be off on another machine, in its own unit.

    Args:
        metric: its name.
        committed: the values of its file.
        bounds: of `metrics/intervals/`, `<metric>.low` and `<metric>.high` where there is an interval.
    """
    # Where all examples are alike (no empty reply) the interval is a point, and says nothing.
    if width := bounds.get(f"{metric}.high", 0.0) - bounds.get(f"{metric}.low", 0.0):
        return width / 2
    if f"{metric}_stderr" in committed:
        return 1.96 * committed[f"{metric}_stderr"]
    value = committed.get(metric, 0)
    return 0.0 if isinstance(value, int) else max(LEAST, RELATIVE * abs(value))


def page(found: Comparison) -> str:
    """What `compare` found, for people."""
    outs = f"{found.outs - len(found.other_outs)} of {found.outs} outs are equal to the byte"
    if found.other_outs:
        more = len(found.other_outs) - SHOWN
        listed = ", ".join(found.other_outs[:SHOWN]) + (f" and {more} more" if more > 0 else "")
        outs += f"; others: {listed}"
    metrics = f"{found.metrics - len(found.differences)} of {found.metrics} metrics are equal"
    if not found.differences:
        return f"{outs}.\n{metrics}."
    rows = [["metric", "committed", "here", "tolerance", ""], *(one.cells for one in found.differences)]
    return f"{outs}.\n{metrics}; the others:\n\n{markdown_table(rows)}\n"


def rerun(clone: Path) -> None:
    """Clone HEAD to `clone`, in place of whatever is there, and run every stage in it.

    Raises:
        UserError: a stage failed.
    """
    shutil.rmtree(clone, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
    # Its cache is its own and empty, so that nothing is taken from earlier runs.
    if subprocess.run([*DVC, "repro", "--force", "--no-run-cache"], cwd=clone, check=False).returncode:
        raise UserError(f"the pipeline fails in {clone}: run `dvc repro` there to see where")


def _committed(clone: Path, target: Path) -> None:
    """What HEAD has of the files that `compare` reads; the rerun has written over them."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    packed = subprocess.run(
        ["git", "archive", "HEAD", str(METRICS), str(LOCK)], cwd=clone, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(target)], input=packed, check=True)


def _metric_files(root: Path) -> list[Path]:
    """The files of metrics that hold numbers of their own: bounds of intervals follow from others."""
    files = (root / METRICS).rglob("*.json")
    return [path for path in files if "intervals" not in path.parts and not path.name.endswith(".signature.json")]


def _outs(path: Path) -> dict[str, str]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        stages: Mapping[str, Any] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    except (OSError, YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): commit what `dvc repro` writes") from None


def _numbers(path: Path) -> Metrics:
    """The numbers of a file of metrics; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def main(argv: Sequence[str]) -> None:
    """Rerun and compare."""
    command_parser("verify", __doc__).parse_args(argv)
    committed = CLONE.with_name("verify-committed")
    rerun(CLONE)
    _committed(CLONE, committed)
    found = compare(committed, CLONE)
    print(page(found))
    if outside := sum(one.outside for one in found.differences):
        raise UserError(f"{outside} metrics lie outside their tolerance; the rerun is in {CLONE}")
