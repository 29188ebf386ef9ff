"""The page, the CSV and the figure of a study's differences (`study_differences`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attune.report.changes import ALPHA
from attune.report.charts import COLOURS, ROW, Chart, as_png, as_svg, specification, standing, static
from attune.report.length import Matched
from attune.report.tables import DASH, direction, escape, markdown_table, star
from attune.runtime.io import csv_text
from attune.tools.study_plan import COLUMNS, SETTING, Shown

if TYPE_CHECKING:
    from attune.tools.study_differences import Difference


def as_csv(found: Sequence[Difference]) -> str:
    """A line for each metric of each variant and point."""
    keys = list(found[0].point) if found else []
    rows = []
    for one in found:
        each = (" ".join(map(str, values)) for values in (one.by_seed, one.by_seed.values()))
        numbers = (one.value, one.low, one.high, one.p, one.corrected, one.examples)
        at_length = one.matched or ("",) * len(Matched._fields)
        rows.append([*one.point.values(), one.variant, one.less, one.metric, *numbers, *each, *at_length])
    columns_after = ("difference", "low", "high", "p", "p_holm", "examples", "seeds", "by_seed")
    of_length = ("matched", "matched_low", "matched_high", "matched_replies")
    return csv_text([*keys, "variant", "less", "metric", *columns_after, *of_length], rows)


def section(found: Sequence[Difference], left: Mapping[str, Sequence[str]], shown: Shown, name: str) -> str:
    """The differences as a section of the study's page, and what is left out."""
    what = {None: "variants", SETTING: "settings"}.get(shown.compared, f"values of {shown.compared}")
    parts = [f"## Differences between the {what}"]
    if found:
        sides = "Of the same run" if shown.compared is None else f"Two {what} with the same seed"
        main = ", ".join(COLUMNS[key][0].rstrip(" ↑↓") for key in shown.metrics)
        seeds = max(len(one.by_seed) for one in found)
        parts += [
            _table(found, shown),
            f"{sides}, on the same examples, mean over the seeds; in brackets the 95 % interval of a bootstrap that "
            "draws seeds and, in common to both sides, examples; star: it excludes 0; two stars: also where the "
            f"p-values of a row are corrected for the number of its main metrics (Holm 1979), which are {main}. "
            f"{_few(seeds)} Each seed's difference and its p-value: [{name}.differences.csv]({name}.differences.csv).",
        ]
        parts += _at_matched_length(found, shown)
    elif not left:
        parts.append(f"No two {what} that are compared have finished with a seed.")
    parts += [f"Not compared, since {reason}: {', '.join(dict.fromkeys(names))}." for reason, names in left.items()]
    return "\n\n".join(parts)


def _table(found: Sequence[Difference], shown: Shown) -> str:
    """A row for each comparison, a column for each metric."""
    cells: dict[str, dict[str, str]] = {}
    most = max(len(one.by_seed) for one in found)
    for one in found:
        digits = COLUMNS[one.metric][1]
        mark = "**" if one.corrected is not None and one.corrected < ALPHA else star(one.low, one.high)
        value, low, high = (f"{number:+z.{digits}f}" for number in (one.value, one.low, one.high))
        few = f", {len(one.by_seed)} of {most} seeds" if len(one.by_seed) < most else ""
        cells.setdefault(label(one) + few, {})[one.metric] = f"{value} ({low} to {high}){mark}"
    rows = [[escape(row), *(of.get(key, DASH) for key in shown.every)] for row, of in cells.items()]
    return markdown_table([["", *(COLUMNS[key][0] for key in shown.every)], *rows])


def _at_matched_length(found: Sequence[Difference], shown: Shown) -> list[str]:
    """The differences at matched length: a heading, a table and what it is; nothing if no metric has one."""
    cells: dict[str, dict[str, str]] = {}
    for one in found:
        if one.matched:
            digits = COLUMNS[one.metric][1]
            value, low, high = (f"{number:+z.{digits}f}" for number in one.matched[:3])
            text = f"{value} ({low} to {high}){star(one.matched.low, one.matched.high)}"
            row = cells.setdefault(label(one), {"replies": f"{one.matched.replies}"})
            row[one.metric] = text
    keys = [key for key in shown.every if any(key in of for of in cells.values())]
    rows = [[escape(row), *(of.get(key, DASH) for key in ("replies", *keys))] for row, of in cells.items()]
    told = (
        "Among replies with about as many words, in five classes ([metrics](../../docs/metrics.md#verdicts)); replies: "
        "those in a class that has some of both sides. A difference that is gone here is one of length."
    )
    table = markdown_table([["", "replies", *(COLUMNS[key][0] for key in keys)], *rows])
    return ["### At matched length", table, told] if rows else []


def _few(seeds: int) -> str:
    """What so few seeds cannot tell."""
    if seeds == 1:
        return "With one seed the interval is over the examples alone."
    share = 100 * 0.5 ** (seeds - 1)
    return (
        f"All {seeds} seeds lie on one side of the truth in {share:.3g} % of studies, and no interval goes far beyond "
        "what they span."
    )


def label(one: Difference) -> str:
    """A row of the table."""
    return _compared(one) if one.axis is None else f"{_compared(one)}, {one.variant}"


def _compared(one: Difference) -> str:
    """The two sides, and what they have in common but for a setting's variant."""
    if one.axis is None:
        return ", ".join([*map(str, one.point.values()), f"{one.variant} less {one.less}"])
    name = "" if one.axis == SETTING else f"{one.axis} "
    sides = (f"{name}{value} less {one.less}" if key == one.axis else str(value) for key, value in one.point.items())
    return ", ".join(sides)


def figure(found: Sequence[Difference], shown: Shown) -> dict[str, bytes]:
    """The figure as SVG and PNG: a panel for each metric, a dot with its interval for each row of the table."""
    panels = [_panel([one for one in found if one.metric == metric], shown) for metric in shown.every]
    drawn = static([panel for panel in panels if panel is not None], columns=2, width=260)
    return {"svg": as_svg(drawn).encode(), "png": as_png(drawn)}


def _panel(found: Sequence[Difference], shown: Shown) -> Chart | None:
    """Of one metric; a small dot for each seed, a dashed line where there is no difference."""
    import altair as alt

    if not found:
        return None
    heading, digits = COLUMNS[found[0].metric]
    rows: list[dict[str, Any]] = []
    for one in found:
        name = label(one) if len(shown.variants) > 1 else _compared(one)
        ends = {f"{one.metric}.diff_low": one.low, f"{one.metric}.diff_high": one.high}
        stands = standing(name, ends, one.metric, direction(heading), "")
        rows.append({"setting": name, "value": one.value, "low": one.low, "high": one.high, "stands": stands})
    each = [
        {"setting": row["setting"], "value": value}
        for row, one in zip(rows, found, strict=True)
        for value in one.by_seed.values()
    ]

    def of(values: Sequence[Mapping[str, Any]]) -> Any:
        y = alt.Y("setting:N", sort=[row["setting"] for row in rows], title=None)
        return alt.Chart(alt.InlineData(values=list(values))).encode(y=y)

    colour = alt.Color("stands:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), legend=None)
    x = alt.X("value:Q", title="difference", scale=alt.Scale(padding=8), axis=alt.Axis(tickCount=4))
    zero = alt.Chart(alt.InlineData(values=[{"value": 0}])).mark_rule(strokeDash=[4, 4], color="#8a8a8a")
    layers = (
        zero.encode(x=x),
        of(rows).mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", color=colour),
        of(rows).mark_point(filled=True, size=70, opacity=1).encode(x=x, color=colour),
        of(each).mark_circle(size=14, color="#333333", opacity=1).encode(x=x),
    )
    words = ", ".join(
        f"{row['setting']} {row['value']:+.{digits}f} ({row['low']:+.{digits}f} to {row['high']:+.{digits}f})"
        for row in rows
    )
    spec = specification(alt.layer(*layers).properties(height=ROW * len(rows)))
    return Chart(heading, spec, f"{heading}, difference: {words}.")
