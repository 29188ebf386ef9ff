"""The comparisons of a record as Markdown: tables of differences, and the strengths and weaknesses they imply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attune.report.comparison import ENDS, STANDARD, STANDS_IN
from attune.report.tables import DASH, GROUPS, Metrics, direction, escape, markdown_table, measured
from attune.scoring.intervals.bootstrap import DISTANCE

Columns = Mapping[str, tuple[str, int]]

STAND_IN = (
    "{name} stands in for {other} (`model.stands_in_for`): it was not made for a domain, so its results here show that "
    "the comparison runs, and nothing about specialised models."
)
MODELS = (
    "A generalist model less a specialised model (`model.specialised`), for the same variant. The two also differ in "
    "size, tokenizer and pretraining: a difference is not the effect of specialisation alone."
)
TRAINING = (
    "A variant trained by DPO less a standard approach to the same model: fine-tuning without DPO, or an instruction "
    "to the base model."
)
READING = (
    "On the same test examples, with the 95 % interval of the paired bootstrap; star: the interval excludes 0. Of the "
    "{count} intervals behind the strengths and weaknesses, about {chance:.0f} would exclude 0 by chance alone. For a "
    "metric without a better direction, *distance* is its distance from the human replies to the same examples, and "
    "smaller is better. The strengths and weaknesses leave out Dist-1, Dist-2 and repeated %, which have no intervals, "
    "since a resample repeats replies."
)


@dataclass(frozen=True)
class Pairing:
    """Two sides by name, and the differences of the first less the second by case (one or two variants)."""

    title: str
    first: str
    second: str
    cases: dict[str, Metrics]


def sections(
    models: Mapping[str, Mapping[str, object]], between: Mapping[str, Mapping[str, Mapping[str, Metrics]]]
) -> list[str]:
    """The sections on the comparisons of a record, as Markdown; empty if it has none.

    Args:
        models: model to what the record has of it.
        between: of `against_specialised`.
    """
    general = [
        Pairing(f"{model} vs {other}", model, other, dict(cases))
        for model, others in between.items()
        for other, cases in others.items()
    ]
    trained = [
        Pairing(model, "DPO", "the standard approach", cases)
        for model, part in models.items()
        if (cases := _flat(part.get(STANDARD)))
    ]
    opening = " ".join([MODELS, *stand_ins(models)])
    return [
        *([_section("Generalist against specialised models", opening, general)] if general else []),
        *([_section("DPO against standard approaches", TRAINING, trained)] if trained else []),
    ]


def stand_ins(models: Mapping[str, Mapping[str, object]]) -> list[str]:
    """A sentence for each model of a record that stands in for a specialised model."""
    replaced = {model: str(part[STANDS_IN]) for model, part in models.items() if part.get(STANDS_IN)}
    return [STAND_IN.format(name=escape(model), other=escape(other)) for model, other in replaced.items()]


def _flat(comparisons: object) -> dict[str, Metrics]:
    """`Comparisons` as "first vs second" to differences; None: there is nothing to compare."""
    known = comparisons if isinstance(comparisons, dict) else {}
    return {f"{first} vs {second}": cells for first, others in known.items() for second, cells in others.items()}


def _section(title: str, opening: str, pairings: Sequence[Pairing]) -> str:
    rows = {
        f"{pairing.title}, {case}".lstrip(", "): cells for pairing in pairings for case, cells in pairing.cases.items()
    }
    groups = [with_distances(columns) for columns in GROUPS.values()]
    count = sum(f"{key}.diff" in cells for columns in groups for key in judged(columns) for cells in rows.values())
    tables = [difference_table(rows, columns) for columns in groups]
    verdicts = [part for pairing in pairings for part in verdict(pairing, title)]
    reading = READING.format(count=count, chance=count / 20)
    return "\n\n".join([f"### {title}", f"{opening} {reading}", *filter(None, tables), *verdicts]) + "\n"


def with_distances(columns: Columns) -> dict[str, tuple[str, int]]:
    """The columns of a table, each without a better direction followed by its distance from the human replies."""
    extended = {}
    for key, (heading, digits) in columns.items():
        extended[key] = (heading, digits)
        if not direction(heading):
            extended[f"{key}{DISTANCE}"] = (f"distance of {heading} ↓", digits)
    return extended


def judged(columns: Columns) -> dict[str, tuple[str, int]]:
    """The columns with a better direction: only they can be strengths or weaknesses."""
    return {key: column for key, column in columns.items() if direction(column[0])}


def difference_table(rows: Mapping[str, Metrics], columns: Columns) -> str:
    """The differences with their intervals as Markdown; empty if `rows` have none of `columns`."""
    shown = {key.removesuffix(".diff"): column for key, column in measured(rows, _diffs(columns)).items()}
    if not shown:
        return ""
    body = [[escape(name), *(_cell(cells, key, d) for key, (_, d) in shown.items())] for name, cells in rows.items()]
    return markdown_table([["difference", *(heading for heading, _ in shown.values())], *body])


def _diffs(columns: Columns) -> dict[str, tuple[str, int]]:
    return {f"{key}.diff": column for key, column in columns.items()}


def _cell(cells: Metrics, key: str, digits: int) -> str:
    if f"{key}.diff" not in cells:
        return DASH
    value, low, high = (f"{cells[f'{key}.{end}']:+z.{digits}f}" for end in ENDS)
    return f"{value} ({low} to {high}){'*' if _sign(cells, key) else ''}"


def _sign(cells: Metrics, key: str) -> int:
    """1 or -1 if the whole interval is above or below 0, else 0."""
    low, high = (cells.get(f"{key}.{end}", 0.0) for end in ENDS[1:])
    return (low > 0) - (high < 0)


def verdict(pairing: Pairing, title: str) -> list[str]:
    """The strengths and weaknesses of the first side, and the metrics in which no side is better, as Markdown blocks.

    Args:
        pairing: what is compared.
        title: used if the pairing has none.
    """
    name, first, second = (escape(text) for text in (pairing.title or title, pairing.first, pairing.second))
    return [
        f"#### {name}: strengths",
        f"{first} is better in:\n\n{_lines(pairing, 1)}",
        f"#### {name}: weaknesses",
        f"{second} is better in:\n\n{_lines(pairing, -1)}",
        f"No difference beyond chance:\n\n{_lines(pairing, 0)}",
    ]


def _lines(pairing: Pairing, side: int) -> str:
    """For each group of metrics a line with those in which a side (1: first, -1: second, 0: neither) is better."""
    groups = {group: _better(pairing, judged(with_distances(columns)), side) for group, columns in GROUPS.items()}
    return "\n".join(f"- {group}: {_list(metrics)}" for group, metrics in groups.items() if metrics) or "- nothing"


def _better(pairing: Pairing, columns: Columns, side: int) -> list[str]:
    """The metrics in which a side is better, with the cases; for side 0 the metrics that differ in no case."""
    names = []
    for key, (heading, _) in measured(pairing.cases, _diffs(columns)).items():
        signs = {
            case: direction(heading) * _sign(cells, key.removesuffix(".diff"))
            for case, cells in pairing.cases.items()
            if key in cells
        }
        cases = [case for case, sign in signs.items() if sign == side]
        name = heading[:-2]
        if side and cases:
            names.append(f"{name} ({'all' if len(cases) == len(signs) > 1 else ', '.join(map(escape, cases))})")
        elif not side and len(cases) == len(signs):
            names.append(name)
    return names


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
