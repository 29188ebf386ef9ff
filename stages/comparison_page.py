"""The comparisons of a record as Markdown: tables of differences, and sentences on who is ahead in what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.comparison import ENDS, STANDARD
from stages.tables import DASH, GROUPS, VARIANT_COLUMNS, Metrics, aligned, direction, escape, measured


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
    found = [_section("Generalist against specialised models", MODELS, models)] if models else []
    trained = [
        Pairing(model, "DPO", "the standard approach", cases)
        for model, part in parts.items()
        if (cases := _flat(part.get(STANDARD)))
    ]
    return [*found, *([_section("DPO against standard approaches", TRAINING, trained)] if trained else [])]


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
    "{count} intervals from which the sentences are made, about {chance:.0f} would leave out 0 by chance alone. MMLU "
    "has no scores by example and is not among them."
)


def _flat(compared: object) -> dict[str, Metrics]:
    """Own to other to differences, as "own vs other" to differences; a record from before there were any has none."""
    known = compared if isinstance(compared, dict) else {}
    return {f"{own} vs {to}": cells for own, others in known.items() for to, cells in others.items()}


def _section(title: str, opening: str, pairings: Sequence[Pairing]) -> str:
    rows = {f"{one.title}, {case}".lstrip(", "): cells for one in pairings for case, cells in one.cases.items()}
    count = sum(_told(key, column, cells) for key, column in VARIANT_COLUMNS.items() for cells in rows.values())
    tables = [difference_table(rows, columns) for columns in GROUPS.values()]
    words = ["\n".join([f"**{escape(one.title or title)}**", "", *sentences(one)]) for one in pairings]
    reading = READING.format(count=count, chance=count / 20)
    return "\n\n".join([f"### {title}", f"{opening} {reading}", *filter(None, tables), *words]) + "\n"


def _told(key: str, column: tuple[str, int], cells: Metrics) -> bool:
    """Whether the sentences speak of a metric: it has a better side, and was compared."""
    return bool(direction(column[0])) and f"{key}.diff" in cells


def difference_table(rows: Mapping[str, Metrics], columns: Mapping[str, tuple[str, int]]) -> str:
    """The differences with their intervals as Markdown; empty where `rows` have none of `columns`."""
    shown = {key.removesuffix(".diff"): column for key, column in measured(rows, _diffs(columns)).items()}
    if not shown:
        return ""
    body = [[escape(name), *(_cell(cells, key, d) for key, (_, d) in shown.items())] for name, cells in rows.items()]
    return aligned([["difference", *(heading for heading, _ in shown.values())], *body])


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


def sentences(pairing: Pairing) -> list[str]:
    """A line for each group of metrics: where either side is ahead, and where every interval holds 0."""
    return [
        f"- {group}: {text}."
        for group, columns in GROUPS.items()
        if (text := _sentence(pairing, {k: c for k, c in columns.items() if direction(c[0])}))
    ]


def _sentence(pairing: Pairing, columns: Mapping[str, tuple[str, int]]) -> str:
    shown = measured(pairing.cases, _diffs(columns))
    ahead: dict[int, list[str]] = {1: [], -1: []}
    level = []
    for name, (heading, _) in shown.items():
        key, word = name.removesuffix(".diff"), heading[:-2]
        signs = {case: direction(heading) * _sign(cells, key) for case, cells in pairing.cases.items() if name in cells}
        for side, told in ahead.items():
            cases = [case for case, sign in signs.items() if sign == side]
            if cases:
                told.append(f"{word} ({'all' if len(cases) == len(signs) > 1 else ', '.join(map(escape, cases))})")
        if not any(signs.values()):
            level.append(word)
    parts = {
        f"{escape(pairing.first)} is ahead in": ahead[1],
        f"{escape(pairing.second)} is ahead in": ahead[-1],
        "no difference beyond chance in": level,
    }
    return "; ".join(f"{opening} {_list(words)}" for opening, words in parts.items() if words)


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
