"""The section of `docs/results.md` on published systems: their metrics, people's ratings, and differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attune.report.tables import (
    DASH,
    GROUPS,
    VARIANT_COLUMNS,
    Metrics,
    escape,
    margins,
    markdown_table,
    measured,
    star,
    table,
)
from attune.report.validity import MEAN

CORNER = "system"


def section(record: Mapping[str, Any], origin: str) -> str:
    """The section.

    Args:
        record: of `attune record --published`.
        origin: how it was produced.
    """
    signature = next(iter(record["signature"].values()))
    counts = record["data"]["replies"]
    first, *_ = counts
    encoder, classifiers = (signature.get(key) for key in ("bertscore_encoder", "epitome_classifiers"))
    sources = [f"F-BERT by {encoder}"] if encoder else []
    sources += [f"levels and diff by classifiers {classifiers}"] if classifiers else []
    blocks = [
        f"## {record['name']}",
        "EmPO's published systems of 7 B parameters (`base`; `base-30`, which is `base` cut at 30 tokens; `sft`; "
        f"`sft-dpo`) on {counts[first]:,} test dialogues of EmpatheticDialogues, and the human replies, scored by the "
        f"code of `python -m attune score`. {origin} Star: differs from {first}, paired by dialogue.",
        *metric_tables(record),
        "BLEU-2 and -3, ROUGE-1 and -2, Dist-3, Dist by reply, precision and recall of BERTScore: "
        f"`docs/results/{record['name']}.json`.",
        f"{'; '.join(sources)}. The human replies have what needs no reference." if sources else "",
        "### People's ratings",
        ratings(record["ratings"]),
        "Three raters of 135 dialogues, 0 to 100. The rated SFT and DPO replies are of other runs of the systems than "
        "those above.",
        f"### Differences from {first}",
        differences(record["metrics"], record["intervals"], first),
        "With the 95 % interval of the paired bootstrap over dialogues; star: it excludes 0. Dist has none.",
        "### Published levels",
        levels(record["published_levels"]),
        "The levels that are published with the replies, by the authors' classifiers (RoBERTa); those of `sft-dpo` are "
        "not. To be compared with the levels above.",
        # Earlier records, and those without classifiers, lack it.
        agreement(part) if (part := record.get("agreement")) else "",
        "\n".join(f"- {escape(note)}" for note in record["left_out"]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def metric_tables(record: Mapping[str, Any]) -> list[str]:
    """A table for each group of metrics that any system has."""
    rows, ends = record["metrics"], record["intervals"]
    notes = {system: margins(ends[system], VARIANT_COLUMNS) for system in rows}
    shown = (measured(rows, columns) for columns in GROUPS.values())
    return [table(CORNER, rows, columns, notes) for columns in shown if columns]


def ratings(part: Mapping[str, Any]) -> str:
    """The table of ratings by scale, the mean of all scales first."""
    scales = sorted(next(iter(part["metrics"].values())), key=lambda scale: scale != MEAN)
    columns = {scale: (f"{scale} ↑", 1) for scale in scales}
    return bounded_table(part, columns)


def levels(part: Mapping[str, Any]) -> str:
    """The table of published levels and of their differences."""
    return bounded_table(part, measured(part["metrics"], VARIANT_COLUMNS))


def agreement(part: Mapping[str, Any]) -> str:
    """How the classifiers' levels agree with the published ones, by system, and diff-EPITOME by both."""
    shorts = list(part["levels"])
    columns = {f"{short}_kappa": (f"{short.upper()} kappa", 2) for short in shorts}
    columns |= {
        f"{kind}diff_{short}": (f"diff-{short.upper()}, {whose}", 3)
        for short in shorts
        for kind, whose in (("", "ours"), ("published_", "published"))
    }
    rows = {
        system: {f"{short}_kappa": part["levels"][short][system]["kappa"] for short in shorts}
        | part["differences"].get(system, {})
        for system in part["levels"][shorts[0]]
    }
    return "\n\n".join(
        [
            "### Agreement with the published levels",
            table(CORNER, rows, columns),
            f"Of the levels above with the published ones, on the {part['dialogues']:,} dialogues (a fifth) that are "
            "held out where classifiers learn from published levels (`epitome.levels`). kappa: Cohen's; accuracy is in "
            "the record.",
        ]
    )


def bounded_table(part: Mapping[str, Any], columns: Mapping[str, tuple[str, int]]) -> str:
    """A table of a part of the record with `metrics` and `intervals`."""
    notes = {system: margins(ends, columns) for system, ends in part["intervals"].items()}
    return table(CORNER, part["metrics"], columns, notes)


def differences(rows: Mapping[str, Metrics], ends: Mapping[str, Metrics], first: str) -> str:
    """A row for each metric with an interval of a difference, a column for each system but the first."""
    others = [system for system in rows if system != first]
    cells = [["metric", *map(escape, others)]]
    for name, (heading, digits) in VARIANT_COLUMNS.items():
        if any(f"{name}.diff" in ends[system] for system in others):
            cells.append([heading, *(difference(ends[system], name, digits) for system in others)])
    return markdown_table(cells)


def difference(ends: Metrics, name: str, digits: int) -> str:
    """A difference with its interval, and a star if that excludes 0."""
    if f"{name}.diff" not in ends:
        return DASH
    value, low, high = (ends[f"{name}.{end}"] for end in ("diff", "diff_low", "diff_high"))
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}){star(low, high)}"
