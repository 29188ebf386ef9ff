"""Run a recipe to its end and keep what came out, with commit, machine and the wall time of each stage.

    python -m stages.record empo-tiny recipe=empo model=tiny

composes `params.yaml`, reproduces stage by stage, writes `docs/results/empo-tiny.json`, and from all files there
`docs/results.md` and the README's table; without a name nothing is run. An interrupted record goes on with the stages
that are left.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

from stages.errors import UserError, reported
from stages.files import write_json, write_text
from stages.machine import machine
from stages.params import compose, load
from stages.tables import COLUMNS, EMPATHY_COLUMNS, PAIR_COLUMNS, Metrics, margins, mmlu_columns, table

RESULTS = Path("docs/results")
PAGE = Path("docs/results.md")
METRICS = Path("metrics")
README = Path("README.md")
# EmPO's table 1 (Sotolar 2024): means of four seeds; shares x 100 as everywhere here.
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
    compose(overrides)
    for stage in _output("dvc", "stage", "list", "--name-only").split():
        started = time.monotonic()
        if subprocess.run(["dvc", "repro", "--single-item", stage], check=False).returncode:
            raise UserError(f"stage {stage} failed: mend it and run the same command again")
        record["wall_seconds"].setdefault(stage, round(time.monotonic() - started, 1))
        write_json(path, record)
    params = load()
    record["data"] = _read(METRICS / "data.json")
    record["pairs"] = {key: _read(METRICS / f"pairs/{key}.json") for key in params.dpo.rounds}
    record["metrics"] = {key: _read(METRICS / f"{key}.json") for key in params.variants}
    record["intervals"] = {key: _read(METRICS / f"intervals/{key}.json") for key in params.variants}
    record["classifiers"] = _read(METRICS / "scorers/epitome.json")
    record["mmlu"] = {key: _read(METRICS / f"mmlu/{key}.json") for key in params.variants}
    record["signature"] = {key: _read(METRICS / f"{key}.signature.json") for key in params.variants}
    write_json(path, record)


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
    on, data = record["machine"], record["data"]
    hardware = f"{on['processor']}, {on['cores']} cores, {on['memory_gib']} GiB, {on['gpu'] or 'no GPU'}"
    origin = (
        f"`{record['command']}`, commit {record['commit'][:12]}, {record['date']}, {hardware}: "
        f"{data['train_dialogues']} train and {data['test_dialogues']} test dialogues, "
        f"{next(iter(record['pairs'].values()))['pairs']} pairs a round."
    )
    rows, notes = _variants(record)
    # A record from before a table's metrics existed goes without that table.
    shown = [
        columns for columns in (EMPATHY_COLUMNS, COLUMNS) if any(columns.keys() & row.keys() for row in rows.values())
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


def _variants(record: dict[str, Any]) -> tuple[dict[str, Metrics], dict[str, dict[str, str]]]:
    """The record's variants with MMLU among their metrics, and the margins behind them."""
    rows, notes = {}, {}
    for key, metrics in record["metrics"].items():
        # Records from before these stages existed have neither.
        mmlu, bounds = mmlu_columns(record.get("mmlu", {}).get(key, {}))
        rows[key] = metrics | mmlu
        notes[key] = margins(record.get("intervals", {}).get(key, {}) | bounds, EMPATHY_COLUMNS | COLUMNS)
    return rows, notes


def insert(readme: str, block: str) -> str:
    """`readme` with `block` between its two marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{block}{END}{rest.split(END)[1]}"


def _section(record: dict[str, Any]) -> str:
    on, seconds = record["machine"], record["wall_seconds"]
    times = {stage: {"seconds": spent} for stage, spent in (seconds | {"all": sum(seconds.values())}).items()}
    versions = f"torch {on['torch']}, transformers {on['transformers']}, TRL {on['trl']}, Python {on['python']}."
    tables = (table("round", record["pairs"], PAIR_COLUMNS), table("stage", times, {"seconds": ("wall time, s", 0)}))
    measured = any(EMPATHY_COLUMNS.keys() & metrics.keys() for metrics in record["metrics"].values())
    compared = [beside_empo(record)] if record["name"] == EMPO and measured else []
    parts = [f"## {record['name']}\n", headline(record), *compared, versions, "", tables[0], "", tables[1], ""]
    return "\n".join(parts)


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
        if begun.items() <= old.items() and "metrics" not in old:
            return old
    return begun | {"date": date.today().isoformat(), "machine": machine(), "wall_seconds": {}}


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
