"""The results of a study: a csv of its experiments, a table over seeds, paired differences, a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from attune.data.dialogue import dialogue_of
from attune.report.charts import COLOURS, Chart, as_png, as_svg, specification, static
from attune.report.paper_results import TABLE_1, dbt_table
from attune.report.results import MMLU, TEXT, metrics_file
from attune.report.tables import AT_CHANCE, Metrics, chance_mark, mmlu_columns, table
from attune.report.validity import correlations, explanation, read_validity
from attune.runtime.errors import UserError
from attune.runtime.io import csv_text, write_bytes, write_text
from attune.runtime.machine import commit, in_words, machine
from attune.scoring.intervals.bootstrap import columns
from attune.scoring.intervals.bootstrap import intervals as bounds
from attune.tools import study_differences_page
from attune.tools.runs import PREFERENCE, Run, revision
from attune.tools.study_differences import RESAMPLES, RESAMPLES_SEED, differences, scores
from attune.tools.study_plan import COLUMNS, MEANS, SEED, SETTING, Grid, Shown, Study

REPORTS = Path("reports/studies")
LINES = [COLOURS[name] for name in ("reference", "worse", "no difference shown", "better")]
"""The colours of the lines of a figure."""
# Rows of the paper, for those of its tables that print numbers, and the models that they are of.
PAPERS = {"empo-table1": lambda: TABLE_1, "dbt-table1": dbt_table}
MODELS = {"empo-table1": {"zephyr-7b"}, "dbt-table1": {"llama-3-8b", "mistral-7b", "gemma-7b"}}


@dataclass(frozen=True)
class Row:
    """A variant of an experiment: its point of the grid, its seed, its Git revision, its metrics, those at chance."""

    experiment: str
    point: dict[str, Any]
    seed: int
    variant: str
    revision: str
    metrics: Metrics
    at_chance: frozenset[str] = frozenset()


def collect(name: str, study: Study, grid: Grid, revisions: Mapping[str, str]) -> None:
    """Write `reports/studies/<name>.csv`, `.md`, `.svg` and `.png`.

    Where settings, values of x or variants are compared, also `<name>.differences.csv`; with the kinds `table` and
    `differences` the figure shows these.

    Args:
        name: of the study.
        study: its file.
        grid: its experiments.
        revisions: name of each finished experiment to its Git revision; of repeated runs of a grid point one is read.

    Raises:
        UserError: no experiment has finished, or an experiment lacks a metric that the study shows or a setting.
    """
    points: dict[tuple[Any, ...], list[Row]] = {}
    signature: dict[str, Any] = {}
    runs = {experiment: revision(commit) for experiment, commit in sorted(revisions.items())}
    for experiment, run in runs.items():
        setting = grid.setting_of(experiment)
        point = ({SETTING: setting} if setting else {}) | {key: _value(run.params, key) for key in grid.axes}
        metrics = {variant: measured(run, variant, study.shown) for variant in study.shown.variants}
        points[tuple(point.values())] = _rows(experiment, run.name, point, metrics, study)
        for scorer in study.shown.scorers:
            signature |= run.signature(scorer, study.shown.variants[-1])
    if not points:
        raise UserError(f"no experiment of {name} has finished at this commit: `python -m attune study run {name}`")
    order = list(grid.settings)
    # By the file's order of settings, then by the values on the axes.
    by_point = sorted(points, key=lambda point: [_place(one, order) for one in point])
    rows = [row for point in by_point for row in points[point]]
    texts = {"csv": as_csv(rows, list(rows[0].point), study.shown.every)}
    settings = [run.params for run in runs.values()]
    below = [beside_paper(name, settings, study.shown.every)] if name in PAPERS else []
    of_lines = study.shown.x is not None
    drawn = figure(study, rows) if of_lines else {}
    shown = study.shown.at(grid.scale)
    if shown.reference is not None or not of_lines:
        found, left = differences(rows, shown, runs)
        texts["differences.csv"] = study_differences_page.as_csv(found)
        below.append(study_differences_page.section(found, left, shown, name))
        if found and not of_lines:
            drawn = study_differences_page.figure(found, shown)
    command = " ".join(["python -m attune study collect", name, *grid.options])
    texts["md"] = "\n\n".join([page(name, study, command, rows, bool(drawn), signature), *below]) + "\n"
    for ending, text in texts.items():
        write_text(REPORTS / f"{name}.{ending}", text)
    for ending, content in drawn.items():
        write_bytes(REPORTS / f"{name}.{ending}", content)
    print(f"{len(points)} experiments: {REPORTS / name}.md")


def _place(value: Any, order: Sequence[str]) -> tuple[bool, float, str]:
    """By which the values of an axis are sorted: settings in the file's `order`, numbers, then names, then null."""
    if value in order:
        return False, order.index(value), ""
    number = isinstance(value, int | float)
    return value is None, value if number else float("inf"), "" if number else str(value)


def _value(params: Mapping[str, Any], key: str) -> Any:
    # Hydra's mark of a key that conf/ does not have.
    value = reduce(lambda part, name: part[name], key.lstrip("+").split("."), params)
    # A group of conf/, such as model, is a section with a name.
    value = value["name"] if isinstance(value, Mapping) else value
    return str(value) if isinstance(value, list) else value


def _rows(
    experiment: str,
    revision: str,
    point: dict[str, Any],
    metrics: Mapping[str, tuple[Metrics, Metrics]],
    study: Study,
) -> list[Row]:
    seed, rest = point[SEED], {key: value for key, value in point.items() if key != SEED}
    rows = []
    for variant, (values, intervals) in metrics.items():
        if missing := [key for key in study.shown.every if key not in values]:
            raise UserError(
                f"experiment {experiment} has no {missing[0]} of variant {variant}: see metrics/ of {revision}"
            )
        shown = {key: values[key] for key in study.shown.every}
        guessing = frozenset(key for key in shown if chance_mark(key, intervals))
        rows.append(Row(experiment, rest, seed, variant, revision, shown, guessing))
    return rows


def measured(run: Run, variant: str, shown: Shown) -> tuple[Metrics, Metrics]:
    """The metrics of a variant by the scorers that a study shows, with the means of `MEANS`, and the intervals of those
    that guessing has a value of.

    An experiment's commit has the files of other scorers, too: those of the run that it was started from.

    Args:
        run: an experiment; without scores by example in DVC's cache preference accuracy has no interval.
        variant: a key of `variants`.
        shown: what the study shows.
    """
    metrics: Metrics = {}
    intervals: Metrics = {}
    for scorer in shown.scorers:
        found = run.object(metrics_file(scorer, variant).path)
        if scorer == MMLU:
            found, intervals = mmlu_columns(found, {})
        metrics |= found
    if PREFERENCE in shown.every:
        intervals = intervals | _preference_interval(run, variant)
    complete = {key: parts for key, parts in MEANS.items() if metrics.keys() >= set(parts)}
    return metrics | {key: fmean(metrics[part] for part in parts) for key, parts in complete.items()}, intervals


def _preference_interval(run: Run, variant: str) -> Metrics:
    table = scores(run, variant, [TEXT]).get(TEXT)
    of_pairs = columns(table[[PREFERENCE]]) if table is not None and PREFERENCE in table else {}
    if table is None or not of_pairs:
        return {}
    dialogues = [dialogue_of(str(name), run.params["context"]["targets"]) for name in table.index]
    return bounds(of_pairs, None, RESAMPLES, RESAMPLES_SEED, dialogues)


def as_csv(rows: Sequence[Row], grid: Sequence[str], metrics: Sequence[str]) -> str:
    """A line for each variant of each experiment."""
    lines = (
        [row.experiment, row.revision, *(row.point[key] for key in grid), row.seed, row.variant]
        + [row.metrics[metric] for metric in metrics]
        for row in rows
    )
    return csv_text(["experiment", "revision", *grid, "seed", "variant", *metrics], lines)


def over_seeds(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """(the point as text, variant) to the values of each metric, a value per seed; in the order of the rows."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        for metric, value in row.metrics.items():
            values.setdefault((point_text(row.point), row.variant), {}).setdefault(metric, []).append(value)
    return values


def always_at_chance(rows: Sequence[Row]) -> dict[tuple[str, str], frozenset[str]]:
    """(the point as text, variant) to the metrics that are at chance with every seed."""
    found: dict[tuple[str, str], frozenset[str]] = {}
    for row in rows:
        key = point_text(row.point), row.variant
        found[key] = found.get(key, row.at_chance) & row.at_chance
    return found


def point_text(point: Mapping[str, Any]) -> str:
    """A point of the grid as text."""
    return ", ".join(f"{key}={value}" for key, value in point.items())


def page(name: str, study: Study, command: str, rows: Sequence[Row], drawn: bool, signature: Mapping[str, Any]) -> str:
    """Mean and standard deviation over the seeds, below the rows of the paper if it prints numbers.

    Args:
        name: of the study.
        study: its file.
        command: that collects its experiments.
        rows: of them.
        drawn: whether it has a figure.
        signature: of the experiments' scores; correlations with people's ratings measured otherwise have a mark.
    """
    means: dict[str, Metrics] = PAPERS[name]() if name in PAPERS else {}
    notes = {}
    at_chance = always_at_chance(rows)
    grouped = over_seeds(rows)
    most = max(len(seeds) for values in grouped.values() for seeds in values.values())
    for (point, variant), values in grouped.items():
        count = max(map(len, values.values()))
        few = f"{count} of {most} seeds" if count < most else ""
        row = ", ".join(part for part in (point, variant, few) if part)
        means = means | {row: {key: fmean(seeds) for key, seeds in values.items()}}
        spread = {key: f" ± {stdev(seeds):,.{COLUMNS[key][1]}f}" for key, seeds in values.items() if len(seeds) > 1}
        guessing = at_chance[point, variant]
        notes[row] = {key: spread.get(key, "") + (AT_CHANCE if key in guessing else "") for key in values}
    columns = {key: COLUMNS[key] for key in study.shown.every}
    validity = read_validity()
    seeds = [str(seed) for seed in sorted({row.seed for row in rows})]
    done = len({row.experiment for row in rows})
    lines = [
        f"# {study.title}",
        f"{study.source}. Written by `{command}` from {done} experiments, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}, at commit {commit()[:12]} on {in_words(machine())}. "
        "±: standard deviation over seeds, each of which draws its own contexts where `generate.limit` is set; "
        f"{AT_CHANCE}: at chance with every seed; `docs/metrics.md` defines every "
        f"number. Each experiment and its Git revision: [{name}.csv]({name}.csv).",
        *([f"![{study.title}]({name}.svg)"] if drawn else []),
        table("", means, columns, notes, correlations(validity, signature)),
        *filter(None, [study.note, explanation(validity, signature)]),
    ]
    return "\n\n".join(lines)


def beside_paper(name: str, settings: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """What differs between the paper's rows of a study and the rows below them.

    Args:
        name: of a study in `PAPERS`.
        settings: the params of its experiments.
        metrics: that it shows.
    """
    models = {params["model"]["name"] for params in settings}
    if others := sorted(models - MODELS[name]):
        return (
            "The first rows are the paper's, of models of 7 and 8 billion parameters, and those below of "
            f"{', '.join(others)}: no number of one compares to one of the other, only which way a step moves a column "
            "within its own rows."
        )
    facts = [f"replies have at most {_all(settings, 'generate', 'max_new_tokens')} tokens"]
    facts.append(f"weights are in {_all(settings, 'model', 'quantization').replace('None', 'bf16')}")
    if any(metric.startswith("diff_") for metric in metrics):
        encoder = _all(settings, "encoder", "name")
        source = {
            "the authors' checkpoints" if params["epitome"]["checkpoints"] != params["epitome"]["data"]
            else f"classifiers trained here on {params['epitome']['data']}" for params in settings
        }  # fmt: skip
        facts.append(f"diff-EPITOME is by {' or '.join(sorted(source))}, with {encoder}")
    if "bertscore_f1" in metrics:
        layer = _all(settings, "bertscore", "layer")
        facts.append(f"F-BERT is by {_all(settings, 'bertscore', 'hub_id')}, layer {layer}; the paper names no encoder")
    return (
        "The first rows are the paper's; those below are of the same models, trained and scored here. What differs, or "
        f"is not said there: {'; '.join(facts)}. `docs/method.md` lists the choices in training."
    )


def _all(settings: Sequence[Mapping[str, Any]], *path: str) -> str:
    """The values at `path` in the params of all experiments, as text."""
    values = (reduce(lambda part, key: part[key], path, params) for params in settings)
    return " or ".join(dict.fromkeys(str(value) for value in values))


def figure(study: Study, rows: Sequence[Row]) -> dict[str, bytes]:
    """The figure as SVG and PNG: a panel for each metric, a line for each variant over `shown.x`."""
    drawn = static([Chart(COLUMNS[key][0], _panel(study, rows, key), "") for key in study.shown.metrics], width=260)
    return {"svg": as_svg(drawn).encode(), "png": as_png(drawn)}


def _panel(study: Study, rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """Means over the seeds; around them the standard deviation, or the range and the value of every seed."""
    import altair as alt

    shown = study.shown
    assert shown.x is not None
    seeds: list[dict[str, Any]] = [
        {"x": float(row.point[shown.x]), "value": row.metrics[metric], "line": _line(row, shown.x)} for row in rows
    ]
    lines = list(dict.fromkeys(row["line"] for row in seeds))
    means = [_over_seeds(seeds, x, line, shown.kind == "spread") for line in lines for x in _places(seeds)]
    x = alt.X(
        "x:Q",
        title=shown.x,
        scale=alt.Scale(type="log" if min(_places(seeds)) > 0 else "linear", nice=False, padding=8),
        # A tick for each value of the grid; by itself a logarithmic axis labels powers of ten alone.
        axis=alt.Axis(values=_places(seeds), labelExpr="datum.value", labelOverlap=False),
    )
    y = alt.Y("mean:Q", title=None, scale=alt.Scale(zero=False))
    legend = alt.Legend(title=None, orient="top") if len(lines) > 1 else None
    names = alt.Scale(domain=lines, range=LINES[: len(lines)])
    look = {"color": alt.Color("line:N", scale=names, legend=legend), "x": x}
    middle = alt.Chart(alt.InlineData(values=[row for row in means if row]))
    line = middle.mark_line(point=True).encode(y=y, strokeDash=alt.StrokeDash("line:N", legend=None), **look)
    if shown.kind != "spread":
        return specification(alt.layer(middle.mark_rule().encode(y="low:Q", y2="high:Q", **look), line))
    every = alt.Chart(alt.InlineData(values=seeds)).mark_circle(opacity=0.6).encode(y="value:Q", **look)
    return specification(alt.layer(middle.mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q", **look), line, every))


def _places(seeds: Sequence[Mapping[str, Any]]) -> list[float]:
    return sorted({row["x"] for row in seeds})


def _line(row: Row, x: str) -> str:
    """The variant and what else but `x` the point has, a line of the figure each."""
    return ", ".join([row.variant, *(f"{key}={value}" for key, value in row.point.items() if key != x)])


def _over_seeds(seeds: Sequence[Mapping[str, Any]], x: float, line: str, spread: bool) -> dict[str, Any]:
    """The mean of a line at a place, and the ends of its range or standard deviation; empty without seeds."""
    values = [row["value"] for row in seeds if row["x"] == x and row["line"] == line]
    if not values:
        return {}
    mean, error = fmean(values), stdev(values) if len(values) > 1 else 0.0
    low, high = (min(values), max(values)) if spread else (mean - error, mean + error)
    return {"x": x, "line": line, "mean": mean, "low": low, "high": high}
