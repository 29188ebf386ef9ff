"""Run a recipe to its end and keep what came out, with commit, machine and the wall time of each stage.

    python -m stages.record empo-tiny recipe=empo model=tiny

composes `params.yaml`, reproduces stage by stage, writes `docs/results/empo-tiny.json`, and from all files there
`docs/results.md` and the README's table; without a name nothing is run. An interrupted record goes on with the stages
that are left.

    python -m stages.record dbt-tiny recipe=dbt model=tiny,tiny-mistral,tiny-gemma

runs one model after another into one record; the metrics of each are read before the next is composed.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

from stages.errors import UserError, reported
from stages.files import write_json, write_text
from stages.machine import machine
from stages.params import Params, compose, label_scorers, load
from stages.tables import (
    BEHAVIOUR_COLUMNS,
    COLUMNS,
    DBT_COLUMNS,
    EMPATHY_COLUMNS,
    LEVEL_COLUMNS,
    PAIR_COLUMNS,
    Metrics,
    margins,
    measured,
    mmlu_columns,
    table,
)

RESULTS = Path("docs/results")
PAGE = Path("docs/results.md")
METRICS = Path("metrics")
README = Path("README.md")
# EmPO's table 1 (Sotolar 2024): means of four seeds; shares x 100 as everywhere here.
DBT_TABLE = Path(__file__).parents[1] / "docs" / "tables" / "dbt_table_1.csv"
EMPO = "empo-tiny"
TABLE_1 = {
    "Zephyr-7B, no SFT": {"mmlu": 58.8, "diff_er": 0.861, "diff_ex": 1.113, "diff_ip": 1.431, "bertscore_f1": 80.4},
    "Zephyr-7B, SFT": {"mmlu": 58.0, "diff_er": 0.888, "diff_ex": 0.657, "diff_ip": 0.750, "bertscore_f1": 86.7},
    "Zephyr-7B, SFT + DPO": {"mmlu": 57.2, "diff_er": 0.660, "diff_ex": 0.627, "diff_ip": 0.648, "bertscore_f1": 72.8},
}
BEGIN, END = "<!-- results: written by python -m stages.record -->", "<!-- end of results -->"


def run(name: str, overrides: list[str], results: Path) -> None:
    """Reproduce every stage in order and write the record after each, so that a kill loses one stage's time at most.

    Raises:
        UserError: the working tree differs from its commit, so that the commit would not name what ran; a stage failed.
    """
    path = results / f"{name}.json"
    record = _begin(path, name, overrides)
    for model, own in compositions(overrides).items():
        part = record["models"].setdefault(model, {"wall_seconds": {}}) if "models" in record else record
        if "metrics" not in part:
            compose(own)
            _reproduce(record, part, path)
            part |= _collected(load())
            write_json(path, record)


def compositions(overrides: list[str]) -> dict[str, list[str]]:
    """The overrides of each run, by its model: `model=a,b` are two runs, anything else is one."""
    named = next((one.removeprefix("model=") for one in overrides if one.startswith("model=")), "")
    rest = [one for one in overrides if not one.startswith("model=")]
    return {model: [*rest, f"model={model}"] for model in named.split(",")} if "," in named else {named: overrides}


def _reproduce(record: dict[str, Any], part: dict[str, Any], path: Path) -> None:
    for stage in _output("dvc", "stage", "list", "--name-only").split():
        started = time.monotonic()
        if subprocess.run(["dvc", "repro", "--single-item", stage], check=False).returncode:
            raise UserError(f"stage {stage} failed: mend it and run the same command again")
        part["wall_seconds"].setdefault(stage, round(time.monotonic() - started, 1))
        write_json(path, record)


def _collected(params: Params) -> dict[str, Any]:
    """What the stages of the composition in force have measured."""
    classifiers = _read(METRICS / "scorers/epitome.json")
    metrics, intervals = {}, {}
    for key in params.variants:
        metrics[key] = _read(METRICS / f"{key}.json")
        intervals[key] = _read(METRICS / f"intervals/{key}.json")
        for name, scorer in label_scorers(params).items():
            if key in scorer.variants:
                metrics[key] |= _read(METRICS / f"{name}/{key}.json")
                intervals[key] |= _read(METRICS / f"intervals/{name}/{key}.json")
    if params.dbt.classifiers:
        classifiers |= {f"dbt_{name}": value for name, value in _read(METRICS / "scorers/dbt.json").items()}
    if params.behaviour.classifiers:
        classifiers |= _read(METRICS / "scorers/behaviour.json")
    return {
        "data": _read(METRICS / "data.json"),
        "pairs": {key: _read(METRICS / f"pairs/{key}.json") for key in params.dpo.rounds},
        "metrics": metrics,
        "intervals": intervals,
        "classifiers": classifiers,
        "mmlu": {key: _read(METRICS / f"mmlu/{key}.json") for key in params.variants},
        "signature": {key: _read(METRICS / f"{key}.signature.json") for key in params.variants},
    }


def page(records: list[dict[str, Any]]) -> str:
    """`docs/results.md` from the records: for each the command, what it ran on, the variants, the pairs, the times."""
    opening = (
        "# Results\n\nWritten by `python -m stages.record` from `docs/results/*.json`. `docs/metrics.md` defines every "
        "number. ±: half of the 95 % interval over the test examples (MMLU: over its questions); star: the interval of "
        "the difference to the reference variant does not hold 0. One seed each, and no interval covers another.\n"
    )
    return "\n".join([opening, *(_section(record) for record in records)])


def headline(record: dict[str, Any]) -> str:
    """A record's table of variants with the sentence that says where it comes from: what the README shows."""
    on, parts = record["machine"], parts_of(record)
    data, pairs = next((one["data"], one["pairs"]) for one in parts.values())
    hardware = f"{on['processor']}, {on['cores']} cores, {on['memory_gib']} GiB, {on['gpu'] or 'no GPU'}"
    origin = (
        f"`{record['command']}`, commit {record['commit'][:12]}, {record['date']}, {hardware}: "
        f"{data['train_dialogues']} train and {data['test_dialogues']} test dialogues, "
        f"{next(iter(pairs.values()))['pairs']} pairs in the first round."
    )
    rows, notes = _variants(record)
    # A record from before a table's metrics existed goes without that table.
    shown = [
        columns
        for columns in (EMPATHY_COLUMNS, LEVEL_COLUMNS, COLUMNS, DBT_COLUMNS, BEHAVIOUR_COLUMNS)
        if any(columns.keys() & row.keys() for row in rows.values())
    ]
    tables = (table("variant", rows, columns, notes) for columns in shown)
    return "\n\n".join([*tables, origin]) + "\n"


def beside_empo(record: dict[str, Any]) -> str:
    """EmPO's table 1 with the record's variants under it, and what stands between the two."""
    rows, notes = _variants(record)
    encoder = next(iter(record["signature"].values())).get("bertscore_encoder", "another encoder")
    return (
        f"### Beside EmPO's table 1\n\n{table('model', TABLE_1 | rows, EMPATHY_COLUMNS, notes)}\n\n"
        "The first rows are the paper's, means over four seeds of a model of 7 billion parameters; the others are this "
        "record's, one seed of a model a thousand times smaller. No number of one compares to one of the other: MMLU "
        f"of a model of this size is chance, F-BERT is over {encoder} where the paper names no encoder, and the "
        "classifiers behind diff-ER, -EX and -IP stand on another encoder than the published ones. What can be "
        "compared is which way a step moves a column within its own rows. The paper's ± over seeds is left out.\n"
    )


def beside_dbt(record: dict[str, Any]) -> str:
    """Table 1 of Son and So with the record's variants under it, and what stands between the two."""
    ours, notes = _variants(record)
    # Each of our Dist-n in its own column: the paper does not say which n its Dist has.
    columns = {"bleu_4": ("B-4 ↑", 2), "rouge_l": ("R-L ↑", 2), "dist": ("Dist ↑", 2), "dist_1": ("Dist-1 ↑", 2),
               "dist_2": ("Dist-2 ↑", 2), "dbt_gap": ("DBT gap ↓", 2)}  # fmt: skip
    return (
        f"### Beside table 1 of Son and So\n\n{table('model', dbt_table() | ours, columns, notes)}\n\n"
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


def parts_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs of a record by their models; of a record of one run that run alone, without a name."""
    return dict(record["models"]) if "models" in record else {"": record}


def _variants(record: dict[str, Any]) -> tuple[dict[str, Metrics], dict[str, dict[str, str]]]:
    """The record's variants with MMLU among their metrics, and the margins behind them."""
    rows, notes = {}, {}
    for model, part in parts_of(record).items():
        for key, metrics in part["metrics"].items():
            name = f"{model}, {key}" if model else key
            # Records from before these stages existed have neither.
            mmlu, bounds = mmlu_columns(part.get("mmlu", {}).get(key, {}))
            rows[name] = metrics | mmlu
            shown = EMPATHY_COLUMNS | LEVEL_COLUMNS | COLUMNS | DBT_COLUMNS | BEHAVIOUR_COLUMNS
            notes[name] = margins(part.get("intervals", {}).get(key, {}) | bounds, shown)
    return rows, notes


def insert(readme: str, block: str) -> str:
    """`readme` with `block` between its two marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{block}{END}{rest.split(END)[1]}"


def _section(record: dict[str, Any]) -> str:
    on = record["machine"]
    versions = f"torch {on['torch']}, transformers {on['transformers']}, TRL {on['trl']}, Python {on['python']}."
    rows, _ = _variants(record)
    compared = []
    if record["name"] == EMPO and any(EMPATHY_COLUMNS.keys() & metrics.keys() for metrics in rows.values()):
        compared.append(beside_empo(record))
    if any("dbt_gap" in metrics for metrics in rows.values()):
        compared.append(beside_dbt(record))
    tables = [line for model, part in parts_of(record).items() for line in _tables(model, part)]
    return "\n".join([f"## {record['name']}\n", headline(record), *compared, versions, "", *tables])


def _tables(model: str, part: dict[str, Any]) -> list[str]:
    """The pairs and the wall times of one run."""
    seconds = part["wall_seconds"]
    times = {stage: {"seconds": spent} for stage, spent in (seconds | {"all": sum(seconds.values())}).items()}
    columns = measured(part["pairs"], PAIR_COLUMNS)
    title = [f"### {model}\n"] if model else []
    return [
        *title,
        table("round", part["pairs"], columns),
        "",
        table("stage", times, {"seconds": ("wall time, s", 0)}),
        "",
    ]


def _begin(path: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """A new record, or the one that was interrupted: same commit, same command, no metrics yet."""
    if _output("git", "status", "--porcelain", "--", "stages", "conf", "dvc.yaml", "data/sources.yaml"):
        raise UserError(
            "stages, conf or dvc.yaml differ from the commit: commit first, so that the record names what ran"
        )
    begun = {
        "name": name,
        "command": " ".join(["python -m stages.record", name, *overrides]),
        "commit": _output("git", "rev-parse", "HEAD").strip(),
    }
    if path.is_file():
        old = _read(path)
        models = compositions(overrides)
        done = all("metrics" in old.get("models", {}).get(one, old) for one in models)
        if begun.items() <= old.items() and not done:
            return old
    times: dict[str, Any] = {"models": {}} if len(compositions(overrides)) > 1 else {"wall_seconds": {}}
    return begun | {"date": date.today().isoformat(), "machine": machine()} | times


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Run the recipe, if one is given, and write the page and the README's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the record: docs/results/<name>.json")
    parser.add_argument("overrides", nargs="*", help="as of `dvc exp run -S`: recipe=empo model=tiny")
    arguments = parser.parse_args()
    if arguments.name:
        run(arguments.name, arguments.overrides, RESULTS)
    records = [_read(path) for path in sorted(RESULTS.glob("*.json"))]
    write_text(PAGE, page(records))
    write_text(README, insert(README.read_text(encoding="utf-8"), "\n".join(map(headline, records))))


if __name__ == "__main__":
    with reported():
        main()
