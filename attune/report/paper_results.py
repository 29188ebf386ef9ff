"""The tables of the papers, each followed by the rows of a record and by what limits their comparison."""

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
    """EmPO's table 1, followed by the variants of a record.

    Args:
        rows: the record's variants to their metrics.
        notes: variant to `tables.margins`.
        encoder: of the record's BERTScore.
    """
    return (
        f"### EmPO's table 1 and this record\n\n{table('model', TABLE_1 | dict(rows), EMPATHY_COLUMNS, notes)}\n\n"
        "The first rows are the paper's: means over four seeds of a model of 7 billion parameters. The others are this "
        "record's: one seed of another model. The numbers of the two are not comparable: F-BERT uses "
        f"{encoder} and the paper names no encoder, and the classifiers behind diff-ER, -EX and -IP use another "
        "encoder than the published ones. Comparable is the direction in which a training step moves a column within "
        "the same model. The paper's ± over seeds is left out.\n"
    )


def beside_dbt(rows: Mapping[str, Metrics], notes: Notes) -> str:
    """Table 1 of Son and So, followed by the variants of a record; arguments as of `beside_empo`."""
    # The paper does not say which n its Dist has, so that our Dist-n have columns of their own.
    columns = {"bleu_4": ("B-4 ↑", 2), "rouge_l": ("R-L ↑", 2), "dist": ("Dist ↑", 2), "dist_1": ("Dist-1 ↑", 2),
               "dist_2": ("Dist-2 ↑", 2), "dbt_gap": ("DBT gap ↓", 2)}  # fmt: skip
    return (
        "### Table 1 of Son and So and this record\n\n"
        f"{table('model', dbt_table() | dict(rows), columns, notes)}\n\n"
        "The first twelve rows are the paper's, of models of 7 and 8 billion parameters on ESConv; the others are this "
        "record's. The paper's Dist names no n. Its DBT metric has no formula: times 100 it is in the column of "
        "`dbt_gap`, this project's reading of it. The numbers of the two are not comparable; comparable is the "
        "direction in which a training step moves a column within the same model.\n"
    )


def dbt_table() -> dict[str, Metrics]:
    """Table 1 of Son and So, from `docs/tables/dbt_table_1.csv`; shares x 100, as everywhere here."""
    with DBT_TABLE.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = {}
    for line in lines:
        numbers = {name: float(line[name]) for name in ("bleu_4", "rouge_l", "dist", "dbt_gap")}
        rows[f"{line['model']}, {line['variant']}"] = numbers | {"dbt_gap": 100 * numbers["dbt_gap"]}
    return rows
