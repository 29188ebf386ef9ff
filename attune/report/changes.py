"""What changed between two runs of the same pipeline: params, a verdict by rule, and each metric with its interval.

Every metric that both runs have scores by example for is compared over the examples that both answered, by the paired
bootstrap of `attune/scoring/intervals/bootstrap.py`. Looking at many metrics finds a difference by chance, so the
p-values are corrected for their number (Holm 1979), and only what is left is called better or worse.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from attune.report.tables import AT_CHANCE, DASH, VARIANT_COLUMNS, Metrics, chance_mark, direction, escape
from attune.runtime.errors import visible
from attune.scoring.intervals import significance
from attune.scoring.intervals.bootstrap import DISTANCE, Columns, columns, distances, metrics, resample_weights

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 10_000
"""More than intervals need: the smallest p-value, 2 / 10,001, must outlast the correction for a hundred metrics."""
ALPHA = 0.05
BETTER, WORSE, NOISE, NEITHER = "better", "worse", "within noise", "no better direction"
HEADINGS = ("", "variant", "metric", "before", "after", "difference", "95 % interval", "p (Holm)")
# Lines of a page are at most 40: rows of the table on each side, params, and lines of what is not judged.
ROWS, PARAMS, LINES, WIDTH = 6, 5, 5, 118


@dataclass(frozen=True)
class Change:
    """A metric of a variant before and after, its difference, 95 % interval and p-value, and what that makes it."""

    variant: str
    metric: str
    before: float
    after: float
    low: float
    high: float
    p: float
    corrected: float = 1.0
    chance: str = ""
    """`AT_CHANCE` if the value after is at chance."""

    @property
    def heading(self) -> str:
        """The name of the metric in the summary."""
        name = self.metric.removesuffix(DISTANCE)
        heading = VARIANT_COLUMNS[name][0]
        return heading if name == self.metric else f"distance of {heading} ↓"

    @property
    def verdict(self) -> str:
        """`BETTER` or `WORSE` if the corrected p-value is below `ALPHA`; `NEITHER` for one without a better end."""
        side = direction(self.heading)
        if not side:
            return NEITHER
        if self.corrected >= ALPHA:
            return NOISE
        return BETTER if side * (self.after - self.before) > 0 else WORSE

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table, under `HEADINGS`."""
        digits = VARIANT_COLUMNS[self.metric.removesuffix(DISTANCE)][1]
        before, after = (f"{value:.{digits}f}" for value in (self.before, self.after))
        after += self.chance
        difference, low, high = (f"{value:+z.{digits}f}" for value in (self.after - self.before, self.low, self.high))
        p = DASH if self.verdict == NEITHER else f"{self.corrected:.3f}" if self.corrected >= 0.001 else "< 0.001"
        return self.verdict, self.variant, self.heading, before, after, difference, f"{low} to {high}", p


@dataclass(frozen=True)
class Changes:
    """All that changed: params, what was judged, and what could not be, each with the reason."""

    params: list[str] = field(default_factory=list)
    judged: list[Change] = field(default_factory=list)
    unjudged: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def paired_changes(
    before: pd.DataFrame, after: pd.DataFrame, variant: str, dialogues: Sequence[str], seed: int
) -> list[Change]:
    """The metrics of the tables whose scores differ, with intervals and p-values; not yet corrected.

    A metric without a better end is judged by its distance from the human replies, if they were scored; else it is kept
    with no verdict.

    Args:
        before: (N,) scores by example.
        after: the same, of the same examples in the same order.
        variant: the name, for the page.
        dialogues: (N,), resampled whole.
        seed: of the resamples.

    Returns:
        In the order of the tables.
    """
    import numpy as np

    old, new = paired_columns(before, after)

    def measure(weights: Any) -> dict[str, Any]:
        sides = [metrics(side, weights) | distances(side, weights) for side in (old, new)]
        return {name: np.array([sides[0][name], sides[1][name]]) for name in sides[0] if name in sides[1]}

    values = measure(np.ones((1, len(before))))
    names = [name for name in _in_order(values) if _differs(name, old, new)]
    parts: dict[str, list[Any]] = {name: [] for name in names}
    for weights in resample_weights(len(before), RESAMPLES, seed, dialogues) if names else ():
        measured = measure(weights)
        for name in names:
            parts[name].append(measured[name])
    return [_change(variant, name, values[name][:, 0], np.concatenate(parts[name], axis=1)) for name in names]


def paired_columns(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[Columns, Columns]:
    """The numeric columns that both sides have; a value that one side lacks is missing in both."""
    shared = [name for name in ours if name in theirs]
    lacks = ours[shared].isna() | theirs[shared].isna()
    return columns(ours[shared].mask(lacks)), columns(theirs[shared].mask(lacks))


def _in_order(values: Mapping[str, object]) -> list[str]:
    """The metrics of the tables in their order, one without a better end as its distance where there is one."""
    names = [name if direction(heading) else f"{name}{DISTANCE}" for name, (heading, _) in VARIANT_COLUMNS.items()]
    both = [name if name in values else name.removesuffix(DISTANCE) for name in names]
    return [name for name in both if name in values]


def _differs(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether any score by example behind a metric differs; equal ones are no finding and are not looked at."""
    import numpy as np

    metric = name.removesuffix(DISTANCE)
    behind = {"dbt_gap": "dbt_", "behaviour_reflection_to_question": "behaviour_"}.get(metric)
    behind = "bleu_" if metric.startswith("bleu_") else behind
    parts = [one for one in old if one in new and (one.startswith(behind) if behind else one == metric)]
    return any(not np.array_equal(old[one], new[one], equal_nan=True) for one in parts)


def _change(variant: str, name: str, values: Any, resampled: Any) -> Change:
    """From the (2,) values before and after, and the same of (2, R) resamples."""
    import numpy as np

    old, new = resampled[:, ~np.isnan(resampled).any(axis=0)]
    drawn = new - old
    low, high = np.percentile(drawn, [2.5, 97.5])
    p = significance.p_value(drawn)
    ends = dict(zip((f"{name}.low", f"{name}.high"), np.percentile(new, [2.5, 97.5]).tolist(), strict=True))
    mark = chance_mark(name, ends)
    return Change(variant, name, float(values[0]), float(values[1]), float(low), float(high), p, chance=mark)


def holm(changes: Sequence[Change]) -> list[Change]:
    """The changes with their p-values corrected for the number of those with a better direction (Holm 1979)."""
    family = [one for one in changes if direction(one.heading)]
    names = [(one.variant, one.metric) for one in family]
    of_family = dict(zip(names, significance.holm([one.p for one in family]), strict=True))
    return [replace(one, corrected=of_family.get((one.variant, one.metric), 1.0)) for one in changes]


def changed_params(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, as `dpo.beta: 0.1 → 0.05`."""
    old, new = _flat(before), _flat(after)
    keys = [key for key in dict.fromkeys([*new, *old]) if old.get(key, DASH) != new.get(key, DASH)]
    return [f"{key}: {old.get(key, DASH)} → {new.get(key, DASH)}" for key in keys]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def verdict(changes: Changes) -> str:
    """The verdict as a sentence, by the rule of `docs/metrics.md`."""
    looked = [one for one in changes.judged if one.verdict != NEITHER]
    better, worse = (sum(one.verdict == side for one in looked) for side in (BETTER, WORSE))
    of = f"of {len(looked)} metrics with scores that differ, corrected for that number"
    if better or worse:
        word = BETTER if not worse else WORSE if not better else "mixed"
        return f"Verdict: {word}. {better} better, {worse} worse, {of}."
    if looked:
        return f"Verdict: no difference shown. None {of}, moved by more than the choice of test examples explains."
    if changes.judged or changes.unjudged:
        return "Verdict: not judged. No metric with a better direction has scores by example that differ."
    return "Verdict: nothing changed."


def page(changes: Changes, name: str, markdown: bool = False, everything: bool = False) -> str:
    """The page: params, verdict, table, noise and what is not judged; at most 40 lines unless `everything`.

    Args:
        changes: judged and corrected.
        name: of what is compared with.
        markdown: as Markdown, in which names are escaped; else plain text.
        everything: no row or line is left out, and the changes within noise are in the table.
    """
    safe = escape if markdown else visible
    parts = [f"Compared with {safe(name)}. {' '.join(map(safe, changes.notes))}".strip()]
    if changes.params:
        parts.append("\n".join(["Changed params:", "", *_bullets(changes.params, PARAMS, safe, everything)]))
    parts.append(f"**{verdict(changes)}**" if markdown else verdict(changes))
    rows, more = _rows(changes.judged, everything)
    if rows:
        parts.append(_table(rows, markdown))
        below = [f"{more} more: --all shows them."] if more else []
        below += [f"{AT_CHANCE}: at chance."] if any(AT_CHANCE in row[4] for row in rows) else []
        parts += [" ".join(below)] if below else []
    noise = [one for one in changes.judged if one.verdict == NOISE]
    if noise and not everything:
        parts.append(_short(f"Within noise, {len(noise)}: {_names(noise, safe)}", 3, everything))
    if moved := [one for one in changes.judged if one.verdict == NEITHER and not everything]:
        texts = (f"{safe(one.heading)} {one.cells[3]} → {one.cells[4]} ({safe(one.variant)})" for one in moved)
        parts.append(_short(f"Without a better direction: {', '.join(texts)}.", 2, everything))
    if changes.unjudged:
        lines = [f"{why}: {', '.join(what)}" for why, what in changes.unjudged.items()]
        parts.append("\n".join(["Not judged:", "", *_bullets(lines, LINES, safe, everything)]))
    return "\n\n".join(parts)


def _rows(judged: Sequence[Change], everything: bool) -> tuple[list[tuple[str, ...]], int]:
    """The cells of what is better, then of what is worse, and how many are left out."""
    kinds = (BETTER, WORSE, NOISE, NEITHER) if everything else (BETTER, WORSE)
    groups = [[one.cells for one in judged if one.verdict == kind] for kind in kinds]
    shown = groups if everything else [group[:ROWS] for group in groups]
    return [cells for group in shown for cells in group], sum(map(len, groups)) - sum(map(len, shown))


def _names(changes: Sequence[Change], safe: Any) -> str:
    by_variant: dict[str, list[str]] = {}
    for one in changes:
        alone = "*" if one.p < ALPHA else ""
        by_variant.setdefault(one.variant, []).append(f"{one.heading.rstrip(' ↑↓')}{alone}")
    text = "; ".join(f"{safe(variant)}: {', '.join(map(safe, names))}" for variant, names in by_variant.items())
    starred = any(one.p < ALPHA for one in changes)
    return f"{text}.{' *: its own 95 % interval excludes 0; the correction takes it back.' if starred else ''}"


def _bullets(lines: Sequence[str], most: int, safe: Any, everything: bool) -> list[str]:
    shown = lines if everything or len(lines) <= most else lines[: most - 1]
    kept = [f"- {_short(safe(line), 2, everything)}" for line in shown]
    return [*kept, *([f"- and {len(lines) - len(shown)} more (--all)"] if len(shown) < len(lines) else [])]


def _short(text: str, lines: int, everything: bool) -> str:
    return text if everything else textwrap.shorten(text, lines * WIDTH, placeholder=" …")


def _table(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    from tabulate import tabulate

    if markdown:
        rows = [[row[0], escape(row[1]), *row[2:]] for row in rows]
    return tabulate(rows, HEADINGS, tablefmt="github" if markdown else "simple", disable_numparse=True)


def unjudged_metrics(before: Metrics, after: Metrics, judged: Sequence[str]) -> dict[str, str]:
    """The metrics of the tables that differ and were not judged: name to `heading before → after`."""
    known = {name.removesuffix(DISTANCE) for name in judged}
    texts = {}
    for name, (heading, digits) in VARIANT_COLUMNS.items():
        if name not in known and before.get(name) != after.get(name):
            values = (f"{side[name]:.{digits}f}" if name in side else DASH for side in (before, after))
            texts[name] = f"{heading.rstrip(' ↑↓')} {' → '.join(values)}"
    return texts
