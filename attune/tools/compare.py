"""Show which metrics changed since a revision: `dvc metrics diff` with the confidence intervals.

    python -m attune compare [REV] [--md] [--all]

compares the metrics of the working tree with those of REV (a commit, branch or tag; default HEAD). A change is *within
noise* if the old value lies inside the new value's 95 % interval (`metrics/intervals/`): such changes are counted but
not shown, unless `--all` is given. A metric without an interval is always shown. The interval covers the sampling of
test examples, not another training seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attune.report.tables import DASH, chance_mark, escape
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError

METRICS = Path("metrics")
INTERVALS = METRICS / "intervals"
HEADINGS = ("metrics", "metric", "old", "new", "change", "95 % interval", "")


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
    def at_chance(self) -> bool:
        """Whether the interval of the new value holds what guessing gives."""
        ends = dict(zip((f"{self.metric}.low", f"{self.metric}.high"), self.interval or (), strict=False))
        return bool(chance_mark(self.metric, ends))

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table, under `HEADINGS`."""
        change = None if self.old is None or self.new is None else self.new - self.old
        bounds = DASH if self.interval is None else f"{self.interval[0]:.4g} to {self.interval[1]:.4g}"
        note = ", ".join(["within noise"] * self.within_noise + ["at chance"] * self.at_chance)
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


def page(changed: Sequence[Change], revision: str, markdown: bool, everything: bool) -> str:
    """The changes as a table, and how many of them are within noise."""
    shown = [change for change in changed if everything or not change.within_noise]
    noise = sum(change.within_noise for change in changed)
    hint = "" if everything or not noise else "; --all shows them"
    count = f"{len(changed)} changes against {revision}, {noise} of them within noise{hint}."
    return f"{_table([change.cells for change in shown], markdown)}\n\n{count}" if shown else count


def compare(revision: str, root: Path = Path()) -> list[Change]:
    """The changes of the metrics in the working tree `root` since `revision`, with the intervals of the tree.

    Raises:
        UserError: DVC does not know the revision or cannot read a metric; a file of intervals is not a JSON object.
    """
    command = [sys.executable, "-m", "dvc", "metrics", "diff", "--json", revision]
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
        raise UserError(f"{path} cannot be read ({error}): run `dvc repro intervals@{path.stem}`") from None


def _number(value: float | None, sign: str = "") -> str:
    return f"{value:{sign}.6g}" if isinstance(value, int | float) else DASH


def _table(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    from tabulate import tabulate

    if markdown:
        rows = [[*map(escape, row[:2]), *row[2:]] for row in rows]
    return tabulate(rows, HEADINGS, tablefmt="github" if markdown else "simple", disable_numparse=True)


def main(argv: Sequence[str]) -> None:
    """Print the comparison."""
    parser = command_parser("compare", __doc__)
    parser.add_argument(
        "revision", nargs="?", default="HEAD", metavar="REV", help="revision to compare with; default HEAD"
    )
    parser.add_argument("--md", action="store_true", help="as a Markdown table")
    parser.add_argument("--all", action="store_true", help="also show changes within noise")
    arguments = parser.parse_args(argv)
    print(page(compare(arguments.revision), arguments.revision, arguments.md, arguments.all))
