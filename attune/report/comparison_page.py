"""The comparisons of a record as Markdown: tables of differences, and the strengths and weaknesses that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attune.report.comparison import ENDS, STANDARD, STANDS_IN
from attune.report.tables import DASH, GROUPS, Metrics, direction, escape, markdown_table, measured
from attune.scoring.intervals.bootstrap import DISTANCE


@dataclass(frozen=True)
class Pairing:
    """Two sides by their names, and the differences of the first less the second by case."""

    title: str
    first: str
    second: str
    cases: dict[str, Metrics]


def sections(
    parts: Mapping[str, Mapping[str, object]], between: Mapping[str, Mapping[str, Mapping[str, Metrics]]]
) -> list[str]:
    """The sections of a record's comparisons, as Markdown; none where it has none.

    Args:
        parts: a record's models with what was collected of each.
        between: of `against_specialised`.
    """
    models = [
        Pairing(f"{own} vs {to}", own, to, dict(cases))
        for own, others in between.items()
        for to, cases in others.items()
    ]
    opening = " ".join([MODELS, *stand_ins(parts)])
    found = [_section("Generalist against specialised models", opening, models)] if models else []
    trained = [
        Pairing(model, "DPO", "the standard approach", cases)
        for model, part in parts.items()
        if (cases := _flat(part.get(STANDARD)))
    ]
    return [*found, *([_section("DPO against standard approaches", TRAINING, trained)] if trained else [])]


def stand_ins(parts: Mapping[str, Mapping[str, object]]) -> list[str]:
    """A sentence for each model of a record that takes the place of a specialised one; older records name none."""
    named = {model: str(part[STANDS_IN]) for model, part in parts.items() if part.get(STANDS_IN)}
    return [STAND_IN.format(name=escape(model), other=escape(other)) for model, other in named.items()]


STAND_IN = (
    "{name} stands in for {other} (`model.stands_in_for`): it was made for no domain itself, so what is said of it "
    "here shows that the comparison runs, and nothing of models that were made for one."
)
MODELS = (
    "A generalist model less a specialised one (`model.specialised`), the same variant of both. The two also differ in "
    "size, tokeniser and pretraining: a difference is theirs, not that of specialisation alone."
)
TRAINING = (
    "A variant trained by DPO less a standard approach to the same model: fine-tuning without DPO, or an instruction "
    "to the base model."
)
READING = (
    "On the same test examples, with the 95 % interval of the paired bootstrap; star: it does not hold 0. Of the "
    "{count} intervals from which strengths and weaknesses are named, about {chance:.0f} would leave out 0 by chance "
    "alone. Where no end of a metric is better by itself, *distance* is how far it is from that of people's replies to "
    "the same examples, and the smaller distance is better. MMLU has no scores by example, and Dist-1, Dist-2 and "
    "repeated % no intervals, since a draw repeats replies: strengths and weaknesses leave them out."
)


def _flat(compared: object) -> dict[str, Metrics]:
    """Own to other to differences, as "own vs other" to differences; a record from before there were any has none."""
    known = compared if isinstance(compared, dict) else {}
    return {f"{own} vs {to}": cells for own, others in known.items() for to, cells in others.items()}


def _section(title: str, opening: str, pairings: Sequence[Pairing]) -> str:
    rows = {f"{one.title}, {case}".lstrip(", "): cells for one in pairings for case, cells in one.cases.items()}
    groups = [with_distances(columns) for columns in GROUPS.values()]
    count = sum(f"{key}.diff" in cells for columns in groups for key in judged(columns) for cells in rows.values())
    tables = [difference_table(rows, columns) for columns in groups]
    words = [part for one in pairings for part in verdict(one, title)]
    reading = READING.format(count=count, chance=count / 20)
    return "\n\n".join([f"### {title}", f"{opening} {reading}", *filter(None, tables), *words]) + "\n"


def with_distances(columns: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """The columns of a table, each that has no better end followed by its distance to people's replies."""
    found = {}
    for key, (heading, digits) in columns.items():
        found[key] = (heading, digits)
        if not direction(heading):
            found[f"{key}{DISTANCE}"] = (f"distance of {heading} ↓", digits)
    return found


def judged(columns: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """The columns of which strengths and weaknesses are named: those with a better end."""
    return {key: column for key, column in columns.items() if direction(column[0])}


def difference_table(rows: Mapping[str, Metrics], columns: Mapping[str, tuple[str, int]]) -> str:
    """The differences with their intervals as Markdown; empty where `rows` have none of `columns`."""
    shown = {key.removesuffix(".diff"): column for key, column in measured(rows, _diffs(columns)).items()}
    if not shown:
        return ""
    body = [[escape(name), *(_cell(cells, key, d) for key, (_, d) in shown.items())] for name, cells in rows.items()]
    return markdown_table([["difference", *(heading for heading, _ in shown.values())], *body])


def _diffs(columns: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    return {f"{key}.diff": column for key, column in columns.items()}


def _cell(cells: Metrics, key: str, digits: int) -> str:
    if f"{key}.diff" not in cells:
        return DASH
    value, low, high = (f"{cells[f'{key}.{end}']:+z.{digits}f}" for end in ENDS)
    return f"{value} ({low} to {high}){'*' if _sign(cells, key) else ''}"


def _sign(cells: Metrics, key: str) -> int:
    """1 or -1 where the whole interval lies above or below 0, else 0."""
    low, high = (cells.get(f"{key}.{end}", 0.0) for end in ENDS[1:])
    return (low > 0) - (high < 0)


def verdict(pairing: Pairing, title: str) -> list[str]:
    """The strengths and weaknesses of the first side as blocks of Markdown, and where neither side is ahead.

    Args:
        pairing: what is compared.
        title: of a pairing that has none.
    """
    name, first, second = (escape(text) for text in (pairing.title or title, pairing.first, pairing.second))
    return [
        f"#### {name}: strengths",
        f"Where {first} is ahead:\n\n{_lines(pairing, 1)}",
        f"#### {name}: weaknesses",
        f"Where {second} is ahead:\n\n{_lines(pairing, -1)}",
        f"No difference beyond chance:\n\n{_lines(pairing, 0)}",
    ]


def _lines(pairing: Pairing, side: int) -> str:
    """A line for each group of metrics in which a side (1: the first, -1: the second, 0: neither) is ahead."""
    told = {group: _ahead(pairing, judged(with_distances(columns)), side) for group, columns in GROUPS.items()}
    return "\n".join(f"- {group}: {_list(words)}" for group, words in told.items() if words) or "- nothing"


def _ahead(pairing: Pairing, columns: Mapping[str, tuple[str, int]], side: int) -> list[str]:
    """The metrics in which a side is ahead, with the cases; of neither side those in which it is so in no case."""
    found = []
    for name, (heading, _) in measured(pairing.cases, _diffs(columns)).items():
        signs = {
            case: direction(heading) * _sign(cells, name.removesuffix(".diff"))
            for case, cells in pairing.cases.items()
            if name in cells
        }
        cases = [case for case, sign in signs.items() if sign == side]
        word = heading[:-2]
        if side and cases:
            found.append(f"{word} ({'all' if len(cases) == len(signs) > 1 else ', '.join(map(escape, cases))})")
        elif not side and len(cases) == len(signs):
            found.append(word)
    return found


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
