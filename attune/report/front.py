"""The first screen of the README: a record's verdict, its main numbers in plain words, a picture, and one dialogue."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from attune.report.figures import metrics_picture
from attune.report.tables import DASH, Metrics, escape, markdown_table, measured, with_people

PLAIN = {
    "preference_accuracy": ("prefers the human reply to its opposite, % (chance 50)", 1),
    "repeated_share": ("replies that repeat another one, %", 1),
    "reply_words": ("words of a reply", 1),
    "bertscore_f1": ("likeness to the human reply (BERTScore F1)", 1),
    "level_er": ("shows feeling (EPITOME ER, 0 to 2)", 2),
    "level_ip": ("shows understanding (EPITOME IP, 0 to 2)", 2),
    "level_ex": ("asks on (EPITOME EX, 0 to 2)", 2),
    "mmlu": ("knows answers to exam questions, % (MMLU, chance 25)", 1),
}
"""The metrics of `attune.report.first_screen`, by what they say."""
DRAWN = {
    "preference_accuracy": ("prefers the human reply, %", 1),
    "bertscore_f1": ("likeness to it (F-BERT)", 1),
    "mmlu": ("MMLU, %", 1),
    "level_er": ("shows feeling (ER)", 2),
    "level_ip": ("shows understanding (IP)", 2),
    "level_ex": ("asks on (EX)", 2),
}
"""The metrics of the picture, by their titles."""
MARKS = "±: half of the 95 % bootstrap interval; star: differs from the base model, by the interval of the difference."


def block(record: Mapping[str, Any], rows: Mapping[str, Metrics], notes: Mapping[str, Mapping[str, str]]) -> str:
    """The Markdown of a record.

    Args:
        record: with `name`, and perhaps `verdict` and `dialogue`, a message and the replies of variants to it.
        rows: variant to its metrics.
        notes: variant to text that follows its numbers, by metric, as of `tables.margins`.
    """
    name = record["name"]
    parts = [
        record.get("verdict", ""),
        f"![{', '.join(rows)}: the numbers of the table](docs/figures/{name}.svg)",
        plain_table(rows, notes),
        MARKS,
        dialogue(record["dialogue"]) if "dialogue" in record else "",
    ]
    return "\n\n".join(part for part in parts if part)


def plain_table(rows: Mapping[str, Metrics], notes: Mapping[str, Mapping[str, str]]) -> str:
    """A row for each metric of `PLAIN` that a variant has, a column for each variant and for people."""
    columns = measured(rows, PLAIN)
    beside = with_people(rows, columns)
    cells = [["", *map(escape, beside)]]
    for key, (words, digits) in columns.items():
        numbers = (
            f"{values[key]:,.{digits}f}{notes.get(name, {}).get(key, '')}" if key in values else DASH
            for name, values in beside.items()
        )
        cells.append([words, *numbers])
    return markdown_table(cells)


def dialogue(said: Mapping[str, Any]) -> str:
    """A message and the replies to it, as a quotation."""
    lines = [f"**Somebody:** {escape(said['message'])}"]
    lines += [f"**{escape(name)}:** {escape(reply)}" for name, reply in said["replies"].items()]
    return "\n>\n".join(f"> {line}" for line in lines)


def picture(rows: Mapping[str, Metrics], intervals: Mapping[str, Metrics]) -> str:
    """The SVG of the main metrics with their intervals."""
    return base64.b64decode(metrics_picture(rows, intervals, measured(rows, DRAWN)).svg).decode()
