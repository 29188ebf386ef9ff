"""The first screen of the README: a record's verdict, its main numbers in plain words, a picture, and one dialogue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attune.report import charts
from attune.report.first_screen import COLUMNS
from attune.report.tables import AT_CHANCE, DASH, Metrics, escape, markdown_table, measured, with_people

WORDS = {
    "preference_accuracy": "prefers the human reply to its opposite, % (chance 50)",
    "repeated_share": "replies that repeat another one, %",
    "reply_words": "words of a reply",
    "bertscore_f1": "likeness to the human reply (BERTScore F1)",
    "level_er": "shows feeling (EPITOME ER, 0 to 2)",
    "level_ip": "shows understanding (EPITOME IP, 0 to 2)",
    "level_ex": "asks for more (EPITOME EX, 0 to 2)",
    "mmlu": "knows answers to exam questions, % (MMLU, chance 25)",
}
"""What the metrics of `attune.report.first_screen` say."""
TITLES = {
    "preference_accuracy": "prefers the human reply, %",
    "bertscore_f1": "likeness to it (F-BERT)",
    "mmlu": "MMLU, %",
    "level_er": "shows feeling (ER)",
    "level_ip": "shows understanding (IP)",
    "level_ex": "asks for more (EX)",
}
"""The same for those of the picture, in fewer words."""
MARKS = (
    "±: half of the 95 % bootstrap interval; star: differs from the base model, by the interval of the difference; "
    f"{AT_CHANCE}: at chance."
)


def block(
    record: Mapping[str, Any], rows: Mapping[str, Metrics], notes: Mapping[str, Mapping[str, str]], figure: Path
) -> str:
    """The Markdown of a record.

    Args:
        record: perhaps with `verdict` and `dialogue`, a message and the replies of variants to it.
        rows: variant to its metrics.
        notes: variant to text that follows its numbers, by metric, as of `tables.margins`.
        figure: file of the `picture`.
    """
    parts = [
        record.get("verdict", ""),
        f"![{', '.join(rows)}: the numbers of the table]({figure})",
        plain_table(rows, notes),
        MARKS,
        dialogue(record["dialogue"]) if "dialogue" in record else "",
    ]
    return "\n\n".join(part for part in parts if part)


def plain_table(rows: Mapping[str, Metrics], notes: Mapping[str, Mapping[str, str]]) -> str:
    """A row for each metric of `WORDS` that a variant has, a column for each variant and for people."""
    columns = measured(rows, _columns(WORDS))
    variants = with_people(rows, columns)
    cells = [["", *map(escape, variants)]]
    for key, (words, digits) in columns.items():
        numbers = (
            f"{values[key]:,.{digits}f}{notes.get(name, {}).get(key, '')}" if key in values else DASH
            for name, values in variants.items()
        )
        cells.append([words, *numbers])
    return markdown_table(cells)


def dialogue(said: Mapping[str, Any]) -> str:
    """A message and the replies to it, as a quotation."""
    lines = [f"**Somebody:** {escape(said['message'])}"]
    lines += [f"**{escape(name)}:** {escape(reply)}" for name, reply in said["replies"].items()]
    return "\n>\n".join(f"> {line}" for line in lines)


def picture(rows: Mapping[str, Metrics], intervals: Mapping[str, Metrics]) -> str:
    """The SVG of the main metrics with their intervals; the first variant is the reference variant."""
    drawn = charts.metric_charts(rows, intervals, measured(rows, _columns(TITLES)), next(iter(rows)))
    return charts.as_svg(charts.static(drawn))


def _columns(words: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Metric to its heading and number of decimals, which are those of the first screen after a run."""
    return {key: (heading, COLUMNS[key][1]) for key, heading in words.items()}
