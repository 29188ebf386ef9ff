"""Markdown that pages share: the tables of metrics, and text of any origin shown as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Metrics = dict[str, float]

DASH = "\u2013"
"""What stands for a missing number."""
JOINERS = "\u200c\u200d"
"""Zero-width characters that belong to scripts and emoji; other invisible ones are replaced."""

COLUMNS = {
    "bleu_1": ("BLEU-1 ↑", 2),
    "bleu_4": ("BLEU-4 ↑", 2),
    "rouge_l": ("ROUGE-L ↑", 2),
    "dist_1": ("Dist-1 ↑", 2),
    "dist_2": ("Dist-2 ↑", 2),
    "reply_words": ("words", 1),
    "empty_share": ("empty % ↓", 1),
    "repeated_share": ("repeated % ↓", 1),
    "preference_accuracy": ("pref. acc. % ↑", 1),
}
PAIR_COLUMNS = {
    "pairs": ("pairs", 0),
    "dropped": ("dropped %", 1),
    "label_coverage": ("labels %", 1),
    "chosen_words": ("chosen words", 1),
    "rejected_words": ("rejected words", 1),
    "longer_rejected": ("longer rejected %", 1),
    "repeated_rejected": ("repeated rejected %", 1),
}


def table(corner: str, rows: Mapping[str, Metrics], columns: Mapping[str, tuple[str, int]]) -> str:
    """A Markdown table with padded columns.

    Args:
        corner: heading of the first column.
        rows: name of the row to its metrics; a missing one becomes a dash.
        columns: metric to its heading and number of decimals.
    """
    cells = [[corner, *(heading for heading, _ in columns.values())]]
    for name, values in rows.items():
        numbers = (f"{values[key]:,.{digits}f}" if key in values else DASH for key, (_, digits) in columns.items())
        cells.append([escape(name), *numbers])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "|".join(["", f":{'-' * (widths[0] + 1)}", *(f"{'-' * (width + 1)}:" for width in widths[1:]), ""])
    head, *body = (_row(row, widths) for row in cells)
    return "\n".join([head, rule, *body])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return f"| {first[0]:<{first[1]}} | " + " | ".join(f"{cell:>{width}}" for cell, width in rest) + " |"


def escape(text: str) -> str:
    """Text of one line as Markdown that shows it as it is, whatever it contains."""
    text = "".join(c if c.isprintable() or c in JOINERS else " " if c.isspace() else "\ufffd" for c in text)
    text = re.sub(r"[\\`*_{}\[\]<>#|~$&]", r"\\\g<0>", text)
    # Bare addresses, which GitHub links.
    text = re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", text, flags=re.IGNORECASE)
    # What makes a list, a rule or a heading at the start of a line only.
    return re.sub(r"^(\s*\d*)([-+=.)])", r"\1\\\2", text)
