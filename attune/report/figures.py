"""The figures of the report as inline SVG, and the page that holds them.

The page is one file that loads nothing and runs nothing. The same input gives the same bytes: ids are salted with a
constant, and matplotlib's own configuration files are not read. Lines differ in style as well as in colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from math import log
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from attune.report.tables import DASH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]

BLUE, RED, GREY = "#0072b2", "#d55e00", "#555555"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "attune",
    "svg.fonttype": "path",
    # A name with two dollar signs is a name, no formula.
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
MARKED = 40
"""Curves of up to this many points have a mark on each; one point alone would be invisible without."""

CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --dim: #555; --paper: #fafafa; --edge: #d8d8d8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --dim: #b0b0b0; --paper: #16181b; --edge: #3a3d42; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; }
figure { margin: 0; } figcaption { color: var(--dim); margin-top: .5rem; }
svg { display: block; box-sizing: border-box; width: 100%; height: auto; padding: .5rem; background: #fff;
  border: 1px solid var(--edge); border-radius: 6px; }
@media print { h2, figure { break-inside: avoid; } h2 { break-after: avoid; } }
"""


@dataclass(frozen=True)
class Picture:
    """A figure: its heading, the sentences below it, what it shows in words (for who cannot see it), and its SVG."""

    title: str
    caption: str
    description: str
    svg: str


@dataclass
class Rounds:
    """The DPO curves of all rounds on one step axis."""

    ends: dict[str, int] = field(default_factory=dict)
    """Last step of each round."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """`loss`, `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`."""


def losses(training: Mapping[str, Curve], rounds: Rounds) -> Picture:
    """The loss over the optimizer steps, a panel for each kind of training.

    Args:
        training: name of a stage to its loss; in the order of the panels, before DPO.
        rounds: the DPO curves.
    """
    all_curves: dict[str, Curve] = {**training, "dpo": rounds.curves["loss"]}

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(all_curves), squeeze=False)[0]
        for axes, (name, curve) in zip(panels, all_curves.items(), strict=True):
            _line(axes, curve, name, BLUE)
            axes.set(title=name, xlabel="optimizer step")
        panels[0].set_ylabel("loss (nats)")
        panels[-1].axhline(log(2), color=GREY, linestyle="--", linewidth=1)
        _mark_rounds(panels[-1], rounds, names=False)

    return Picture(
        "Loss",
        "Healthy: pretraining (base) and fine-tuning (sft) fall fast, then flatten. The DPO loss starts at ln 2 = "
        "0.693 (dashed), where policy and reference agree, and falls slowly; a fall towards 0 means pairs that are too "
        "easy or a beta that is too large. Dotted lines are the ends of the rounds.",
        _described(all_curves),
        _svg(draw, 2.9),
    )


def rewards(rounds: Rounds) -> Picture:
    """The implicit rewards of the two sides of the pairs."""
    return _dpo_picture(
        rounds,
        "DPO rewards",
        "Healthy: the chosen replies end up above the rejected ones. Both sinking together is common, since DPO only "
        "asks for their distance; chosen replies that sink far below 0 are on their way to replies nobody would write.",
        {"chosen": "rewards/chosen", "rejected": "rewards/rejected"},
        "reward (beta * nats)",
    )


def margins(rounds: Rounds) -> Picture:
    """The distance between the two rewards."""
    return _dpo_picture(
        rounds,
        "DPO margins",
        "Healthy: starts at 0 and rises, faster in the first round, flatter with the falling learning rate. A margin "
        "that stays at 0 means that nothing is learnt: too few steps, or too small a learning rate or beta.",
        {"margin": "rewards/margins"},
        "chosen - rejected reward",
    )


def accuracies(rounds: Rounds) -> Picture:
    """The share of training pairs that the policy ranks as people did."""
    percent = {"accuracy": [(step, 100 * value) for step, value in rounds.curves["rewards/accuracies"]]}
    return _dpo_picture(
        rounds,
        "DPO accuracy on the training pairs",
        "The share of pairs whose chosen reply has the higher reward. It starts at 0, since a tie counts as wrong. "
        "Healthy: above 50 % (dashed, chance) and rising; near 100 % early on means that the pairs are too easy.",
        percent,
        "pairs (%)",
        chance=50,
    )


def metric_bars(variants: Mapping[str, Mapping[str, float]], columns: Mapping[str, tuple[str, int]]) -> Picture:
    """A panel for each metric, a bar for each variant.

    Args:
        variants: name to metrics; a missing metric is drawn as a dash.
        columns: metric to its heading and number of decimals.
    """

    def draw(figure: Figure) -> None:
        across = 3
        panels = figure.subplots(-(-len(columns) // across), across, squeeze=False, sharey=True).flatten()
        for axes, (metric, (heading, digits)) in zip(panels, columns.items(), strict=False):
            _bars(axes, {name: values.get(metric) for name, values in variants.items()}, digits)
            axes.set_title(heading)
        for axes in panels[len(columns) :]:
            axes.set_axis_off()
        # The variants share their axis: from top to bottom in the order of the table.
        panels[0].invert_yaxis()

    values = (
        f"{heading}: " + ", ".join(f"{name} {_number(values.get(metric), digits)}" for name, values in variants.items())
        for metric, (heading, digits) in columns.items()
    )
    return Picture(
        "Metrics of the variants",
        "Each panel has its own scale. Healthy: sft is above base in overlap with the human replies, and DPO keeps "
        "most of it with a higher preference accuracy; empty or repeated replies that grow say that a model "
        "collapses. The bars carry no interval: the tables of the summary do.",
        "; ".join(values) + ".",
        _svg(draw, -(-len(columns) // 3) * (0.9 + 0.28 * len(variants))),
    )


def pair_words(pairs: Mapping[str, Mapping[str, float]]) -> Picture:
    """Mean words of the chosen and the rejected replies of each round."""

    def draw(figure: Figure) -> None:
        axes, half = figure.subplots(), 0.19
        for side, colour, hatch, shift in (("chosen", BLUE, "", -half), ("rejected", RED, "///", half)):
            places = [i + shift for i in range(len(pairs))]
            words = [one[f"{side}_words"] for one in pairs.values()]
            bars = axes.bar(places, words, 2 * half, color=colour, hatch=hatch, edgecolor="white", label=side)
            axes.bar_label(bars, fmt="%.1f", padding=2)
        axes.set_xticks(range(len(pairs)), list(pairs))
        axes.set(ylabel="words a reply", xlim=(-0.7, len(pairs) - 0.3))
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.15)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    values = (
        f"{key}: chosen {one['chosen_words']:.1f}, rejected {one['rejected_words']:.1f}" for key, one in pairs.items()
    )
    return Picture(
        "Length of the replies in the pairs",
        "Healthy: the two bars of a round are about equal. Where one side is longer throughout, length alone tells the "
        "two apart, and DPO learns length in place of empathy.",
        "; ".join(values) + ".",
        _svg(draw, 2.6),
    )


def page(title: str, lead: str, pictures: Sequence[Picture]) -> str:
    """The page: well-formed HTML that refers to nothing outside itself."""
    sections = "\n".join(_section(f"f{i}", picture) for i, picture in enumerate(pictures, start=1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'" />
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p>{escape(lead)}</p>
{sections}
</main>
</body>
</html>
"""


def _section(name: str, picture: Picture) -> str:
    return f"""<section>
<h2>{escape(picture.title)}</h2>
<figure>
{_inline(picture, name)}
<figcaption>{escape(picture.caption)}</figcaption>
</figure>
</section>"""


def _inline(picture: Picture, name: str) -> str:
    """The SVG as a part of a page: with title and description, and ids that no other figure has."""
    root = ElementTree.fromstring(picture.svg)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    for element in root.iter():
        # Inside HTML, SVG needs no namespaces.
        element.tag = _bare(element.tag)
        element.attrib = {_bare(key): _renamed(_bare(key), value, name) for key, value in element.attrib.items()}
    for place, (tag, text) in enumerate((("title", picture.title), ("desc", picture.description))):
        element = ElementTree.Element(tag, id=f"{name}-{tag}")
        element.text = text
        root.insert(place, element)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    return ElementTree.tostring(root, encoding="unicode")


def _bare(name: str) -> str:
    return name.rpartition("}")[2]


def _renamed(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    return f"#{name}-{value[1:]}" if key == "href" else re.sub(r"url\(#", f"url(#{name}-", value)


def _dpo_picture(
    rounds: Rounds,
    title: str,
    caption: str,
    lines: Mapping[str, str | Curve],
    unit: str,
    chance: float | None = None,
) -> Picture:
    """A figure over the steps of all rounds; `lines` holds the curves or their names in `rounds`."""
    curves = {name: rounds.curves[line] if isinstance(line, str) else line for name, line in lines.items()}
    looks = ((BLUE, "-", "o"), (RED, "--", "s"))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if chance is not None:
            axes.axhline(chance, color=GREY, linestyle="--", linewidth=1)
        for (name, curve), look in zip(curves.items(), looks, strict=False):
            _line(axes, curve, name, *look)
        axes.set(xlabel="optimizer step", ylabel=unit)
        _mark_rounds(axes, rounds)
        if len(curves) > 1:
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    return Picture(title, caption, _described(curves), _svg(draw, 2.9))


def _line(axes: Axes, curve: Curve, name: str, colour: str, style: str = "-", mark: str = "o") -> None:
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    shown = mark if len(curve) <= MARKED else ""
    axes.plot(steps, values, color=colour, linestyle=style, marker=shown, markersize=3.5, linewidth=1.6, label=name)


def _mark_rounds(axes: Axes, rounds: Rounds, names: bool = True) -> None:
    """A dotted line where a round ends and, above, the name of each."""
    start = 0
    for key, end in rounds.ends.items():
        axes.axvline(end, color=GREY, linestyle=":", linewidth=1)
        if names:
            place = ((start + end) / 2, 1.02)
            axes.text(*place, key, transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=GREY)
        start = end


def _bars(axes: Axes, values: Mapping[str, float | None], digits: int) -> None:
    """Horizontal bars with their numbers; 0 is where they start, and a missing one is a dash."""
    lengths = [value or 0.0 for value in values.values()]
    axes.barh(range(len(values)), lengths, 0.62, color=BLUE)
    axes.set_yticks(range(len(values)), list(values))
    right = max([*lengths, 0.0]) or 1.0
    axes.set_xlim(0, 1.3 * right)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    for place, (value, length) in enumerate(zip(values.values(), lengths, strict=True)):
        axes.text(length + 0.03 * right, place, _number(value, digits), va="center", fontsize=9)


def _number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _described(curves: Mapping[str, Curve]) -> str:
    """Where each curve starts and ends, in words."""
    ends = ((name, curve[0], curve[-1]) for name, curve in curves.items())
    return "; ".join(f"{name}: {a[1]:.4g} at step {a[0]}, {b[1]:.4g} at step {b[0]}" for name, a, b in ends) + "."


def _svg(draw: Callable[[Figure], None], height: float) -> str:
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures, whatever matplotlib is set to here."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield
