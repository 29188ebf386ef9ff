"""The tables of the papers with a record's rows under them, and what stands between the two."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from attune.report.tables import EMPATHY_COLUMNS, Metrics, table

# EmPO's table 1 (Sotolar 2024): means of four seeds; shares x 100 as everywhere here.
TABLE_1 = {
    "Zephyr-7B, no SFT": {"mmlu": 58.8, "diff_er": 0.861, "diff_ex": 1.113, "diff_ip": 1.431, "bertscore_f1": 80.4},
    "Zephyr-7B, SFT": {"mmlu": 58.0, "diff_er": 0.888, "diff_ex": 0.657, "diff_ip": 0.750, "bertscore_f1": 86.7},
    "Zephyr-7B, SFT + DPO": {"mmlu": 57.2, "diff_er": 0.660, "diff_ex": 0.627, "diff_ip": 0.648, "bertscore_f1": 72.8},
}
DBT_TABLE = Path(__file__).parents[2] / "docs" / "tables" / "dbt_table_1.csv"
Notes = Mapping[str, Mapping[str, str]]


def beside_empo(rows: Mapping[str, Metrics], notes: Notes, encoder: str) -> str:
    """EmPO's table 1 with the variants of a record under it.

    Args:
        rows: the record's variants to their metrics.
        notes: of `tables.margins`, by variant.
        encoder: behind the record's BERTScore.
    """
    return (
        f"### Beside EmPO's table 1\n\n{table('model', TABLE_1 | dict(rows), EMPATHY_COLUMNS, notes)}\n\n"
        "The first rows are the paper's, means over four seeds of a model of 7 billion parameters; the others are this "
        "record's, one seed of a model a thousand times smaller. No number of one compares to one of the other: MMLU "
        f"of a model of this size is chance, F-BERT is over {encoder} where the paper names no encoder, and the "
        "classifiers behind diff-ER, -EX and -IP stand on another encoder than the published ones. What can be "
        "compared is which way a step moves a column within its own rows. The paper's ± over seeds is left out.\n"
    )


def beside_dbt(rows: Mapping[str, Metrics], notes: Notes) -> str:
    """Table 1 of Son and So with the variants of a record under it; arguments as of `beside_empo`."""
    # Each of our Dist-n in its own column: the paper does not say which n its Dist has.
    columns = {"bleu_4": ("B-4 ↑", 2), "rouge_l": ("R-L ↑", 2), "dist": ("Dist ↑", 2), "dist_1": ("Dist-1 ↑", 2),
               "dist_2": ("Dist-2 ↑", 2), "dbt_gap": ("DBT gap ↓", 2)}  # fmt: skip
    return (
        f"### Beside table 1 of Son and So\n\n{table('model', dbt_table() | dict(rows), columns, notes)}\n\n"
        "The first twelve rows are the paper's, of models of 7 and 8 billion parameters on ESConv; the others are this "
        "record's. Its Dist names no n, and its metric has no formula: it stands, times 100, under `dbt_gap`, as this "
        "project reads it. No number of one compares to one of the other; what can be compared is "
        "which way a step moves a column within its own rows.\n"
    )


def dbt_table() -> dict[str, Metrics]:
    """Table 1 of Son and So, from `docs/tables/dbt_table_1.csv`: shares x 100, as everywhere here."""
    with DBT_TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        numbers = {name: float(row[name]) for name in ("bleu_4", "rouge_l", "dist", "dbt_gap")}
        found[f"{row['model']}, {row['variant']}"] = numbers | {"dbt_gap": 100 * numbers["dbt_gap"]}
    return found
