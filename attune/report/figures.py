"""The figures that `dvc plots show` does not draw: metrics with their intervals, and both rewards of DPO in one figure.

`reports/plots.html` holds them as SVG images; it loads nothing and runs nothing. Equal input gives equal bytes: ids are
salted with a constant, and the reader's matplotlib settings are ignored.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isnan, nan
from typing import TYPE_CHECKING, Any, NamedTuple

from attune.report.read import Curve, DpoCurves
from attune.report.render import render
from attune.report.tables import DASH, MOVEMENT_COLUMNS, Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns = Mapping[str, tuple[str, int]]

BLUE, RED, GREY = "#0072b2", "#d55e00", "#555555"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "attune",
    "svg.fonttype": "path",
    # A name with two dollar signs is not a formula.
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
}
WIDTH = 8.0
PANELS = 3  # side by side


class Picture(NamedTuple):
    """An SVG in base64, and its content in words for readers who cannot see it."""

    svg: str
    description: str


def page(title: str, lead: str, metrics: Picture, dpo: Picture, movement: Picture | None, healthy: str) -> str:
    """The page as HTML.

    Args:
        title: of the page.
        lead: what was run.
        metrics: of `metrics_picture`.
        dpo: of `dpo_picture`.
        movement: of `movement_picture`.
        healthy: the ranges of what it shows.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    pictures = {"metrics": metrics, "dpo": dpo, "movement": movement}
    return render("plots.html", title=title, lead=lead, policy=policy, healthy=healthy, **pictures)


def metrics_picture(variants: Mapping[str, Metrics], intervals: Mapping[str, Metrics], columns: Columns) -> Picture:
    """A panel for each metric, with a bar and a 95 % interval for each variant.

    Args:
        variants: name to metrics; a missing metric is drawn as a dash.
        intervals: name to `<metric>.low` and `<metric>.high`.
        columns: metric to its heading and number of decimals.
    """
    rows = -(-len(columns) // PANELS)
    with _drawing(rows * (0.9 + 0.28 * len(variants))) as (figure, svg):
        panels = figure.subplots(rows, PANELS, squeeze=False, sharey=True).flatten()
        for axes, (metric, (heading, digits)) in zip(panels, columns.items(), strict=False):
            _bars(axes, variants, intervals, metric, digits)
            axes.set_title(heading)
        for axes in panels[len(columns) :]:
            axes.set_axis_off()
        # The variants from top to bottom in the order of the tables.
        panels[0].invert_yaxis()
    numbers = (
        f"{heading}: " + ", ".join(f"{name} {_number(values.get(key), digits)}" for name, values in variants.items())
        for key, (heading, digits) in columns.items()
    )
    return Picture(base64.b64encode(svg.getvalue()).decode(), "; ".join(numbers) + ".")


def dpo_picture(dpo: DpoCurves) -> Picture:
    """The implicit rewards of the chosen and the rejected replies, and the reward accuracy, over all rounds."""
    chosen, rejected, accuracy = (dpo.curves[f"rewards/{name}"] for name in ("chosen", "rejected", "accuracies"))
    percent = [(step, 100 * value) for step, value in accuracy]
    with _drawing(5.0) as (figure, svg):
        upper, lower = figure.subplots(2, 1, sharex=True)
        _line(upper, chosen, label="chosen", color=BLUE, marker="o")
        _line(upper, rejected, label="rejected", color=RED, marker="s", linestyle="--")
        upper.set_ylabel("reward (beta * nats)")
        upper.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        _line(lower, percent, color=BLUE, marker="o")
        lower.axhline(50, color=GREY, linestyle="--", linewidth=1)
        lower.set(xlabel="optimizer step", ylabel="reward accuracy (%)")
        for axes in (upper, lower):
            for end in dpo.ends.values():
                axes.axvline(end, color=GREY, linestyle=":", linewidth=1)
    curves = {"chosen": chosen, "rejected": rejected, "accuracy in %": percent}
    ends = ((name, curve[0], curve[-1]) for name, curve in curves.items())
    words = (f"{name}: {a[1]:.4g} at step {a[0]}, {b[1]:.4g} at step {b[0]}" for name, a, b in ends)
    return Picture(base64.b64encode(svg.getvalue()).decode(), "; ".join(words) + ".")


def movement_picture(dpo: DpoCurves) -> Picture | None:
    """What the rounds moved on held-out pairs, a panel each; None if no round was measured."""
    if not dpo.movement:
        return None
    # Both sides in one panel, as their distance is what the margin is made of.
    names = [name for name in MOVEMENT_COLUMNS if name != "rejected_logp"]
    rows = -(-len(names) // PANELS)
    with _drawing(2.3 * rows) as (figure, svg):
        panels = figure.subplots(rows, PANELS, squeeze=False, sharex=True).flatten()
        for axes, name in zip(panels, names, strict=False):
            both = name == "chosen_logp"
            _line(axes, dpo.moved[name], color=BLUE, marker="o", label="chosen")
            if both:
                _line(axes, dpo.moved["rejected_logp"], color=RED, marker="s", linestyle="--", label="rejected")
                axes.legend(frameon=False, fontsize=8)
            axes.set_title("log-prob" if both else MOVEMENT_COLUMNS[name][0].rstrip(" ↑"))
            axes.set_xlabel("optimizer step")
        for axes in panels[len(names) :]:
            axes.set_axis_off()
    ends = ((MOVEMENT_COLUMNS[name][0], curve[0], curve[-1]) for name, curve in dpo.moved.items())
    words = (f"{name}: {a[1]:.4g} at step {a[0]}, {b[1]:.4g} at step {b[0]}" for name, a, b in ends)
    return Picture(base64.b64encode(svg.getvalue()).decode(), "; ".join(words) + ".")


def _line(axes: Axes, curve: Curve, **look: Any) -> None:
    # Short curves only: one point would be invisible without a mark, hundreds of marks hide the line.
    size = 3 if len(curve) <= 40 else 0
    axes.plot([step for step, _ in curve], [value for _, value in curve], markersize=size, linewidth=1.6, **look)


def _bars(axes: Axes, variants: Mapping[str, Metrics], intervals: Mapping[str, Metrics], key: str, digits: int) -> None:
    """Horizontal bars of the metric `key`, each with its interval and its number."""
    tips = []
    for place, (name, values) in enumerate(variants.items()):
        value = values.get(key, 0.0)
        low, high = (intervals.get(name, {}).get(f"{key}.{end}", nan) for end in ("low", "high"))
        axes.barh(place, value, 0.62, color=BLUE)
        axes.plot([low, high], [place, place], color="black", linewidth=1.6)
        tips.append(value if isnan(high) else max(value, high))
        number = _number(values.get(key), digits)
        axes.annotate(number, (tips[-1], place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(variants)), list(variants))
    axes.set_xlim(0, 1.35 * (max(0.0, *tips) or 1.0))
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)


def _number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


@contextmanager
def _drawing(height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """An empty figure and the buffer that it is written to at the end, as SVG."""
    with style():
        from matplotlib.figure import Figure

        figure, svg = Figure(figsize=(WIDTH, height), layout="constrained"), io.BytesIO()
        yield figure, svg
        figure.savefig(svg, format="svg", metadata={"Date": None})


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures, whatever matplotlib is set to here."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield
