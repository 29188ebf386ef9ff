"""Charts as Vega-Lite specifications made by Altair: the interactive page `reports/report.html`, and pictures.

The page holds Vega, Vega-Lite and vega-embed (BSD-3) as vl-convert bundles them: it loads nothing. The specifications
are data; the expressions in them are interpreted, not evaluated, so that the page's content security policy lets no
other script run. Equal input gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any

from attune.data.keyed import uniform
from attune.report.read import Curve, DpoCurves
from attune.report.render import hash_source, render, script
from attune.report.samples_page import SCORES
from attune.report.tables import CHANCE, MOVEMENT_COLUMNS, PEOPLE, Metrics, direction, star, with_people

if TYPE_CHECKING:
    import altair

Columns = Mapping[str, tuple[str, int]]
Rows = list[dict[str, Any]]

# After Okabe and Ito: told apart with any colour vision, and on white and on black.
COLOURS = {
    "better": "#009e73",
    "worse": "#d55e00",
    "differs": "#cc79a7",
    "no difference shown": "#8a8a8a",
    "no interval": "#c4c4c4",
    "reference": "#0072b2",
    PEOPLE: "#e69f00",
}
"""How a variant stands to the reference variant, by the interval of the paired difference."""
ENDS = {"highest": COLOURS["better"], "lowest": COLOURS["worse"], "between": "#8a8a8a"}
SIDES = {"chosen": COLOURS["reference"], "rejected": COLOURS["worse"], "accuracy": COLOURS["reference"]}
MARKED = 10
"""Replies of a variant that are shown as highest, and as lowest."""
ROW = 26
"""Height of a row of dots, in pixels."""
EXPORTS = "window.vegaEmbed = vegaEmbed"
"""What the page's script sees of the bundle."""
PICTURE = {
    "view": {"stroke": None},
    "title": {"anchor": "start", "fontSize": 12},
    "axis": {"titleFontWeight": "normal"},
}
"""The look of the pictures in pages of Markdown."""
TEXT_LENGTH = 240
"""Characters of a text that a tooltip shows."""


@dataclass(frozen=True)
class Chart:
    """A chart and its content in words, for readers who cannot see it."""

    title: str
    spec: dict[str, Any]
    description: str


def page(title: str, lead: str, sections: Mapping[str, Sequence[Chart]], healthy: str) -> str:
    """The page as HTML.

    Args:
        title: of the page.
        lead: what was run.
        sections: `metrics`, `levels`, `examples`, `curves`, `movement`: the charts of each; a section without charts is
            left out.
        healthy: the ranges of what DPO moved.
    """
    numbered = {name: [(f"{name}-{i}", chart) for i, chart in enumerate(charts)] for name, charts in sections.items()}
    specs = {key: chart.spec for charts in numbered.values() for key, chart in charts}
    source, source_hash = script("report.js")
    return render(
        "report.html",
        title=title,
        lead=lead,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src {hash_source(library())} {source_hash}",
        sections=numbered,
        marked=MARKED,
        healthy=healthy,
        # Inside a script element only "<" could end it.
        specs=json.dumps(specs, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        library=library(),
        script=source,
    )


def static(charts: Sequence[Chart], columns: int = 3, width: int = 220) -> dict[str, Any]:
    """The specification of a picture of charts side by side, on white: of `as_svg` and `as_png`.

    Args:
        charts: in reading order.
        columns: charts side by side.
        width: of a chart, in pixels.
    """
    panels = [{**chart.spec, "title": chart.title, "width": width} for chart in charts]
    return {"background": "white", "concat": panels, "columns": columns, "config": PICTURE}


def as_svg(spec: Mapping[str, Any]) -> str:
    """A specification as SVG; equal input gives equal text."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(dict(spec), vl_version=_version()))


def as_png(spec: Mapping[str, Any]) -> bytes:
    """A specification as PNG, in twice the pixels of the SVG."""
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(dict(spec), vl_version=_version(), scale=2))


def _version() -> str:
    """The version of Vega-Lite that Altair writes, as vl-convert names it."""
    import altair

    return ".".join(altair.SCHEMA_VERSION.split(".")[:2])


@cache
def library() -> str:
    """The source of Vega, Vega-Lite and vega-embed, as one script."""
    import vl_convert

    return str(vl_convert.javascript_bundle(EXPORTS, vl_version=_version())).replace("</script", "<\\/script")


def metric_charts(
    variants: Mapping[str, Metrics], intervals: Mapping[str, Metrics], columns: Columns, reference: str
) -> list[Chart]:
    """A dot with its 95 % interval for each variant, and for people where their replies have the metric.

    Args:
        variants: name to metrics; a variant that lacks a metric has no dot.
        intervals: name to `<metric>.low`, `.high`, `.diff_low` and `.diff_high`.
        columns: metric to its heading and number of decimals; one that no variant has gets no chart.
        reference: the variant that differences are taken to.
    """
    charts = []
    for key, (heading, digits) in columns.items():
        rows = [
            _dot(name, values[key], intervals.get(name, {}), key, (heading, digits), reference)
            for name, values in with_people(variants, {key: (heading, digits)}).items()
            if key in values
        ]
        if rows:
            words = ", ".join(f"{row['variant']} {row['shown']}" for row in rows)
            charts.append(Chart(heading, _dots(rows, CHANCE.get(key)), f"{heading}: {words}."))
    return charts


def _dot(name: str, value: float, ends: Metrics, key: str, column: tuple[str, int], reference: str) -> dict[str, Any]:
    heading, digits = column
    low, high = ends.get(f"{key}.low"), ends.get(f"{key}.high")
    interval = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return {
        "variant": name,
        "value": value,
        "low": low,
        "high": high,
        "shown": f"{value:.{digits}f}{interval}",
        "to reference": standing(name, ends, key, direction(heading), reference),
    }


def standing(name: str, ends: Metrics, key: str, better: int, reference: str) -> str:
    """A key of `COLOURS`.

    Args:
        name: of the variant, or `PEOPLE`.
        ends: of its intervals.
        key: the metric.
        better: of `direction`.
        reference: the variant that the difference is taken to.
    """
    if name in (reference, PEOPLE):
        return "reference" if name == reference else PEOPLE
    low, high = (ends.get(f"{key}.diff_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return "no interval"
    if not star(low, high):
        return "no difference shown"
    return {1: "better", -1: "worse", 0: "differs"}[better * (1 if low > 0 else -1)]


def _dots(rows: Rows, chance: float | None) -> dict[str, Any]:
    import altair as alt

    def of(which: Rows) -> Any:
        return alt.Chart(alt.InlineData(values=which)).encode(
            y=alt.Y("variant:N", sort=[row["variant"] for row in rows], title=None),
            color=_colour("to reference", COLOURS),
            tooltip=[alt.Tooltip(f"{field}:N") for field in ("variant", "shown", "to reference")],
        )

    value = alt.X("value:Q", title=None, scale=alt.Scale(zero=False, padding=8), axis=alt.Axis(tickCount=4))
    layers: list[Any] = [of(rows).mark_point(filled=True, size=70, opacity=1).encode(x=value)]
    if judged := [row for row in rows if row["low"] is not None]:
        # Below the dots.
        layers.insert(0, of(judged).mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q"))
    if chance is not None:
        line = alt.Chart(alt.InlineData(values=[{"chance": chance}])).mark_rule(strokeDash=[4, 4], color="#8a8a8a")
        layers.append(line.encode(x="chance:Q", tooltip=alt.Tooltip("chance:Q")))
    return specification(alt.layer(*layers).properties(width="container", height=ROW * len(rows)))


def example_charts(
    replies: Mapping[str, Sequence[dict[str, Any]]], scores: Mapping[str, Mapping[str, Metrics]], reference: str
) -> list[Chart]:
    """How far each reply is from the reference variant's in the scores by example; a dot opens its dialogue.

    Args:
        replies: variant to its rows, as of `Results`.
        scores: variant to the scores of each reply by its id; those of `SCORES` that exist are drawn.
        reference: the variant that differences are taken to.
    """
    rows: dict[str, Rows] = {}
    for name in replies:
        if name != reference:
            for key, (heading, digits) in SCORES.items():
                rows.setdefault(heading, []).extend(_differences(name, key, digits, replies, scores, reference))
    return [
        Chart(heading, _strip(of_score), f"{heading}, less that of {reference}: {_ends(of_score)}.")
        for heading, of_score in rows.items()
        if of_score
    ]


def _differences(
    name: str,
    key: str,
    digits: int,
    replies: Mapping[str, Sequence[dict[str, Any]]],
    scores: Mapping[str, Mapping[str, Metrics]],
    reference: str,
) -> Rows:
    """The replies of a variant by falling difference; `MARKED` at each end are marked, with ties, if they differ."""
    ours, theirs = (scores.get(which, {}) for which in (name, reference))
    rows = []
    for row in replies[name]:
        after, before = (side.get(row["id"], {}).get(key) for side in (ours, theirs))
        if after is None or before is None:
            continue
        rows.append({
            "variant": name,
            "difference": round(after - before, digits),
            "somebody": _short(row["context"][-1]["text"]),
            "reply": _short(row["reply"]),
            "dialogue": row["id"],
            "page": f"samples.html#{row['id']}",
            "spread": uniform(1000, name, row["id"], "spread") / 1000,
        })  # fmt: skip
    rows.sort(key=lambda row: (-row["difference"], row["dialogue"]))
    if rows:
        high, low = (rows[min(MARKED, len(rows)) * sign - (sign > 0)]["difference"] for sign in (1, -1))
        for row in rows:
            highest, lowest = row["difference"] >= max(high, 1e-9), row["difference"] <= min(low, -1e-9)
            row["end"] = "highest" if highest else "lowest" if lowest else "between"
    return rows


def _strip(rows: Rows) -> dict[str, Any]:
    import altair as alt

    chart = alt.Chart(alt.InlineData(values=rows)).mark_circle(size=45, cursor="pointer")
    return specification(
        chart.encode(
            x=alt.X("difference:Q", title="difference to the reference variant"),
            y=alt.Y("variant:N", sort=None, title=None),
            yOffset=alt.YOffset("spread:Q"),
            color=_colour("end", ENDS),
            opacity=alt.condition(alt.datum.end == "between", alt.value(0.35), alt.value(1)),
            tooltip=[alt.Tooltip(f"{field}:N") for field in ("dialogue", "somebody", "reply", "difference")],
            href="page:N",
        ).properties(width="container", height=4 * ROW * len({row["variant"] for row in rows}))
    )


def _ends(rows: Rows) -> str:
    """The highest and the lowest reply, in words."""
    first, last = (end(rows, key=lambda row: row["difference"]) for end in (max, min))
    return ", ".join(f"{row['variant']} {row['difference']:+g} in {row['dialogue']}" for row in (first, last))


def curve_charts(dpo: DpoCurves, sft: Mapping[str, Curve]) -> list[Chart]:
    """The loss of supervised fine-tuning; the implicit rewards of DPO, and the reward accuracy, over all rounds."""
    rewards = {side: dpo.curves[f"rewards/{side}"] for side in ("chosen", "rejected")}
    accuracy = {"accuracy": [(step, 100 * value) for step, value in dpo.curves["rewards/accuracies"]]}
    ends = [{"step": step, "round": name} for name, step in dpo.ends.items()]
    return [
        _curves("SFT: loss", "loss (nats a token)", sft, None, [], None),
        _curves("DPO: rewards", "reward (beta * nats)", rewards, SIDES, ends, None),
        _curves("DPO: reward accuracy", "reward accuracy (%)", accuracy, SIDES, ends, 50.0),
    ]


def movement_charts(dpo: DpoCurves) -> list[Chart]:
    """What the rounds moved on valid pairs; none if no round was measured."""
    if not dpo.movement:
        return []
    charts = []
    for name, (heading, _) in MOVEMENT_COLUMNS.items():
        # Both sides in one chart, as their distance is what the margin is made of.
        if name == "chosen_logp":
            both = {"chosen": dpo.moved["chosen_logp"], "rejected": dpo.moved["rejected_logp"]}
            charts.append(_curves("log-probability", "nats a token", both, SIDES, [], None))
        elif name != "rejected_logp":
            title = heading.removesuffix(" ↑")
            charts.append(_curves(title, "", {title: dpo.moved[name]}, None, [], None))
    return charts


def _curves(
    title: str,
    axis: str,
    curves: Mapping[str, Curve],
    colours: Mapping[str, str] | None,
    ends: Rows,
    chance: float | None,
) -> Chart:
    import altair as alt

    rows = [
        {"step": step, "value": value, "curve": name}
        for name, curve in curves.items()
        for step, value in curve
        if isfinite(value)
    ]
    line = alt.Chart(alt.InlineData(values=rows)).mark_line(point=alt.OverlayMarkDef(size=25))
    scale = alt.Scale(domain=list(curves), range=[colours[name] for name in curves]) if colours else alt.Undefined
    legend = alt.Legend(title=None, orient="top") if len(curves) > 1 else None
    layers: list[Any] = [
        line.encode(
            x=alt.X("step:Q", title="optimizer step"),
            y=alt.Y("value:Q", title=axis, scale=alt.Scale(zero=False)),
            color=alt.Color("curve:N", scale=scale, legend=legend),
            tooltip=[alt.Tooltip("curve:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4g")],
        )
    ]
    if ends:
        dotted = alt.Chart(alt.InlineData(values=ends)).mark_rule(strokeDash=[2, 4], color="#8a8a8a")
        layers.append(dotted.encode(x="step:Q", tooltip=[alt.Tooltip("round:N", title="end of round")]))
    if chance is not None:
        dashed = alt.Chart(alt.InlineData(values=[{"chance": chance}])).mark_rule(strokeDash=[4, 4], color="#8a8a8a")
        layers.append(dashed.encode(y="chance:Q", tooltip=alt.Tooltip("chance:Q")))
    words = "; ".join(f"{name}: {_number(curve[0])}, {_number(curve[-1])}" for name, curve in curves.items() if curve)
    return Chart(title, specification(alt.layer(*layers).properties(width="container", height=220)), f"{words}.")


def _number(point: tuple[int, float]) -> str:
    step, value = point
    return f"{value:.4g} at step {step}"


def _colour(field: str, colours: Mapping[str, str]) -> altair.Color:
    import altair as alt

    return alt.Color(f"{field}:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)


def specification(chart: Any) -> dict[str, Any]:
    """The specification with its data in place, and without Altair's look: the page has a light and a dark one."""
    import altair as alt

    # Data that stand apart, at the top, would be lost where the chart becomes a panel of a picture.
    with alt.data_transformers.enable(consolidate_datasets=False):
        spec: dict[str, Any] = chart.to_dict()
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def _short(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else f"{text[:TEXT_LENGTH]} …"
