"""Run a recipe to its end and keep what came out, with commit, machine and the wall time of each stage.

    python -m attune record empo-tiny recipe=empo model=tiny

composes `params.yaml`, reproduces stage by stage, writes `docs/results/empo-tiny.json`, and from all files there
`docs/results.md` and the README's tables, those of `empo-tiny`; without a name nothing is run. An interrupted record
goes on with the stages that are left.

    python -m attune record dbt-tiny recipe=dbt model=tiny,tiny-mistral,tiny-gemma

runs one model after another into one record; the metrics of each are read before the next is composed. Its scores by
example are kept in `.cache/records/` (which `make clean` removes), to compare generalist and specialised models by.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from attune.config.params import compose, load
from attune.config.schema import Params
from attune.report import comparison
from attune.report.comparison_page import sections
from attune.report.paper_results import beside_dbt, beside_empo
from attune.report.tables import (
    CLASSIFIER_COLUMNS,
    EMPATHY_COLUMNS,
    GROUPS,
    PAIR_COLUMNS,
    VARIANT_COLUMNS,
    Metrics,
    beside_people,
    classifier_rows,
    margins,
    measured,
    mmlu_columns,
    table,
)
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError
from attune.runtime.io import write_json, write_text
from attune.runtime.machine import machine
from attune.tools.pipeline import stages_in_order

RESULTS = Path("docs/results")
PAGE = Path("docs/results.md")
METRICS = Path("metrics")
SCORES = Path("data/scores")
# The scores by example of the models that are done, ignored by Git: the next model's run replaces those in data/scores.
KEPT = Path(".cache/records")
BETWEEN = "generalist_less_specialised"
README = Path("README.md")
EMPO = "empo-tiny"
JUDGES = "On held-out examples, in percent; guessing: always the most frequent label."
BEGIN, END = "<!-- results: written by python -m attune record -->", "<!-- end of results -->"


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
            params = load()
            comparison.keep(SCORES, dict.fromkeys(params.variants, params.scorers), KEPT / name / model)
            part |= _collected(params) | _compared(params, KEPT / name / model)
            if "models" in record:
                done = {key: one["specialised"] for key, one in record["models"].items() if "metrics" in one}
                record[BETWEEN] = comparison.against_specialised(done, KEPT / name, _drawing(params))
            write_json(path, record)


def compositions(overrides: list[str]) -> dict[str, list[str]]:
    """The overrides of each run, by its model: `model=a,b` are two runs, anything else is one."""
    named = next((one.removeprefix("model=") for one in overrides if one.startswith("model=")), "")
    rest = [one for one in overrides if not one.startswith("model=")]
    return {model: [*rest, f"model={model}"] for model in named.split(",")} if "," in named else {named: overrides}


def _reproduce(record: dict[str, Any], part: dict[str, Any], path: Path) -> None:
    for stage in stages_in_order():
        started = time.monotonic()
        if subprocess.run(["dvc", "repro", "--single-item", stage], check=False).returncode:
            raise UserError(f"stage {stage} failed: mend it and run the same command again")
        part["wall_seconds"].setdefault(stage, round(time.monotonic() - started, 1))
        write_json(path, record)


def _collected(params: Params) -> dict[str, Any]:
    """What the stages of the composition in force have measured."""
    classifiers: Metrics = {}
    for name in params.classifiers:
        prefix = "dbt_" if name == "dbt" else ""
        quality = _read(METRICS / "classifiers" / f"{name}.json")
        classifiers |= {f"{prefix}{key}": value for key, value in quality.items()}
    metrics: dict[str, Metrics] = {key: {} for key in params.variants}
    intervals: dict[str, Metrics] = {key: {} for key in params.variants}
    for key in params.variants:
        for scorer in params.scorers:
            metrics[key] |= _read(METRICS / scorer / f"{key}.json")
            intervals[key] |= _read(METRICS / "intervals" / scorer / f"{key}.json")
    return {
        "data": _read(METRICS / "data.json"),
        "pairs": {key: _read(METRICS / f"pairs/{key}.json") for key in params.rounds},
        "metrics": metrics,
        "intervals": intervals,
        "classifiers": classifiers,
        "mmlu": {key: _read(METRICS / f"mmlu/{key}.json") for key in params.variants},
        "signature": {key: _read(METRICS / "text" / f"{key}.signature.json") for key in params.variants},
    }


def _compared(params: Params, kept: Path) -> dict[str, Any]:
    """Whether the model is a specialised one, or stands in for one, and its DPO less the standard approaches."""
    return {
        "specialised": params.model.specialised,
        comparison.STANDS_IN: params.model.stands_in_for,
        comparison.STANDARD: comparison.against_standard(params.variants, kept, _drawing(params)),
    }


def _drawing(params: Params) -> comparison.Drawing:
    return comparison.Drawing(params.context.targets, params.evaluate.resamples, params.seed)


def page(records: list[dict[str, Any]]) -> str:
    """`docs/results.md` from the records: for each the command, what it ran on, the variants, the pairs, the times."""
    opening = (
        "# Results\n\nWritten by `python -m attune record` from `docs/results/*.json`. `docs/metrics.md` defines every "
        "number. ±: half of the 95 % interval over the test examples (MMLU: over its questions); star: the interval of "
        "the difference to the reference variant does not hold 0. Dist-n and repeated replies are counted over all "
        "replies at once and have none. One seed each, and no interval covers another.\n"
    )
    return "\n".join([opening, *(_section(record) for record in records)])


def headline(record: dict[str, Any]) -> str:
    """A record's table of variants with the sentence that says where it comes from."""
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
    shown = [columns for columns in GROUPS.values() if any(columns.keys() & row.keys() for row in rows.values())]
    tables = (table("variant", beside_people(rows, columns), columns, notes) for columns in shown)
    return "\n\n".join([*tables, origin]) + "\n"


def front(records: list[dict[str, Any]]) -> str:
    """What the README shows: EmPO's record, and where the others are."""
    shown = [headline(one) for one in records if one["name"] == EMPO]
    links = [f"[{one['name']}]({PAGE}#{one['name']})" for one in records if one["name"] != EMPO]
    return "\n".join([*shown, *([f"More records: {', '.join(links)}.\n"] if links else [])])


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
            notes[name] = margins(part.get("intervals", {}).get(key, {}) | bounds, VARIANT_COLUMNS)
    return rows, notes


def insert(readme: str, block: str) -> str:
    """`readme` with `block` between its two marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{block}{END}{rest.split(END)[1]}"


def _section(record: dict[str, Any]) -> str:
    on = record["machine"]
    versions = f"torch {on['torch']}, transformers {on['transformers']}, TRL {on['trl']}, Python {on['python']}."
    rows, notes = _variants(record)
    compared = []
    if record["name"] == EMPO and any(EMPATHY_COLUMNS.keys() & metrics.keys() for metrics in rows.values()):
        encoder = next(iter(record["signature"].values())).get("bertscore_encoder", "another encoder")
        compared.append(beside_empo(rows, notes, encoder))
    if any("dbt_gap" in metrics for metrics in rows.values()):
        compared.append(beside_dbt(rows, notes))
    compared += sections(parts_of(record), record.get(BETWEEN, {}))
    if measures := classifier_rows(next(iter(parts_of(record).values())).get("classifiers", {})):
        judges = table("classifier", measures, CLASSIFIER_COLUMNS)
        compared.insert(0, f"### The classifiers behind the numbers\n\n{judges}\n\n{JUDGES}\n")
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
        "command": " ".join(["python -m attune record", name, *overrides]),
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


def main(argv: Sequence[str]) -> None:
    """Run the recipe, if one is given, and write the page and the README's table."""
    parser = command_parser("record", __doc__)
    parser.add_argument("name", nargs="?", help="of the record: docs/results/<name>.json")
    parser.add_argument("overrides", nargs="*", help="as of `dvc exp run -S`: recipe=empo model=tiny")
    arguments = parser.parse_args(argv)
    if arguments.name:
        run(arguments.name, arguments.overrides, RESULTS)
    records = [_read(path) for path in sorted(RESULTS.glob("*.json"))]
    write_text(PAGE, page(records))
    write_text(README, insert(README.read_text(encoding="utf-8"), front(records)))
