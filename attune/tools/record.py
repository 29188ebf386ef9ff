"""Run a recipe completely and record its results, with commit, machine and the wall time of each stage.

    python -m attune record empo recipe=empo hardware=gpu

composes `params.yaml`, reproduces stage by stage and writes `docs/results/empo.json` and `docs/figures/empo.svg`; from
all records it writes `docs/results.md` and the first screen of the README (that of `empo`). Without a name only these
pages are written; without a record there is no page, and the README says so. After an interruption the same command
continues with the remaining stages.

    python -m attune record dbt recipe=dbt model=mistral-7b,gemma-7b hardware=gpu

runs several models one after another into one record; the results of a model are read before the next is composed. The
scores by example are kept in `.cache/records/` (which `make clean` removes), to compare generalist with specialised
models.

    python -m attune record --published

runs nothing: it scores EmPO's published replies, those of systems of 7 B parameters, and writes
`docs/results/empo-7b.json` (attune/tools/published.py).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from attune.config.params import compose, load
from attune.config.schema import Params
from attune.report import comparison, first_screen, movement, published_page, results
from attune.report import front as first_page
from attune.report.comparison_page import sections
from attune.report.paper_results import beside_dbt, beside_empo
from attune.report.read import Results, read
from attune.report.tables import (
    AT_CHANCE,
    CLASSIFIER_COLUMNS,
    EMPATHY_COLUMNS,
    GROUPS,
    PAIR_COLUMNS,
    VARIANT_COLUMNS,
    Metrics,
    classifier_rows,
    escape,
    margins,
    measured,
    mmlu_columns,
    table,
    truth_chance,
    with_people,
)
from attune.report.verdicts import verdicts
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError
from attune.runtime.io import between_marks, write_json, write_text
from attune.runtime.machine import commit, in_words, machine
from attune.tools import published
from attune.tools.chat import begin, require
from attune.tools.pipeline import stages_in_order
from attune.tools.repro import RUNNING
from attune.tools.runs import RECORDED_SCORES
from attune.tools.stage_times import kind

RECORDS = Path("docs/results")
PAGE = Path("docs/results.md")
BETWEEN = "generalist_less_specialised"
README = Path("README.md")
EMPO, PUBLISHED = "empo", "empo-7b"
FIGURE = Path(f"docs/figures/{EMPO}.svg")
# Written for this project: the data of most corpora may not be shown.
MESSAGE = "I failed my driving test for the third time today. Everyone at work knows, and I feel so stupid."
NO_RECORD = "Results of a real model follow with the next record.\n"
CLASSIFIERS = "On held-out examples, in percent; guessing: always the most frequent label."
BEGIN, END = "<!-- results: written by python -m attune record -->", "<!-- end of results -->"


def run(name: str, overrides: list[str], folder: Path) -> None:
    """Reproduce every stage in order; write the record after each, so that a kill loses the time of one stage only.

    Raises:
        UserError: the working tree differs from its commit, which would not identify the code; or a stage failed.
    """
    path = folder / f"{name}.json"
    record = _begin(path, name, overrides)
    for model, model_overrides in compositions(overrides).items():
        part = record["models"].setdefault(model, {"wall_seconds": {}}) if "models" in record else record
        if "metrics" not in part:
            compose(model_overrides)
            _reproduce(record, part, path)
            params = load()
            # The run of the next model overwrites data/scores.
            scores = RECORDED_SCORES / name / (model if "models" in record else "")
            comparison.save_scores(params.scorers, params.variants, scores)
            found = read(params)
            part |= _results(params) | _findings(found, params) | _comparisons(params, scores)
            if name == EMPO:
                verdict = first_screen.verdict(params, found.variants, found.intervals)
                part |= {"verdict": verdict, "dialogue": _dialogue(params)}
            if "models" in record:
                done = {key: values["specialised"] for key, values in record["models"].items() if "metrics" in values}
                record[BETWEEN] = comparison.against_specialised(done, RECORDED_SCORES / name, _bootstrap(params))
            write_json(path, record)


def run_published(folder: Path) -> None:
    """Write the record of EmPO's published systems.

    Raises:
        UserError: as of `run` and of `published.results`.
    """
    record = _identity(PUBLISHED, "python -m attune record --published") | published.results(load())
    write_json(folder / f"{PUBLISHED}.json", record)


def compositions(overrides: list[str]) -> dict[str, list[str]]:
    """The overrides of each run, by model: `model=a,b` gives two runs, anything else a single run."""
    models = next((text.removeprefix("model=") for text in overrides if text.startswith("model=")), "")
    if "," not in models:
        return {models: overrides}
    rest = [text for text in overrides if not text.startswith("model=")]
    return {model: [*rest, f"model={model}"] for model in models.split(",")}


def _reproduce(record: dict[str, Any], part: dict[str, Any], path: Path) -> None:
    """Reproduce all stages; keep the times of those that ran, and did not come from DVC's cache."""
    for stage in stages_in_order():
        started, ran = time.monotonic(), False
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                ran |= RUNNING % stage in line
        if process.returncode:
            raise UserError(f"stage {stage} failed: fix the cause and rerun the same command")
        if ran:
            part["wall_seconds"].setdefault(stage, round(time.monotonic() - started, 1))
        write_json(path, record)


def _results(params: Params) -> dict[str, Any]:
    """All metrics, intervals and signatures of the current composition."""
    metrics: dict[str, Metrics] = {key: {} for key in params.variants}
    intervals: dict[str, Metrics] = {key: {} for key in params.variants}
    for key in params.variants:
        for scorer in results.of_replies(params.scorers):
            metrics[key] |= results.read_metrics(results.metrics_file(scorer, key))
        for scorer in params.scorers:
            intervals[key] |= results.read_metrics(results.intervals_file(scorer, key))
        probed, bounds = results.read_probes(params, key)
        metrics[key] |= probed
        intervals[key] |= bounds
    return {
        "data": results.read_metrics(results.data_file()) | results.read_metrics(results.labels_file()),
        "pairs": {key: results.read_metrics(results.pairs_file(key)) for key in params.rounds},
        "metrics": metrics,
        "intervals": intervals,
        "classifiers": results.read_quality(params),
        "mmlu": {key: results.read_metrics(results.mmlu_file(key)) for key in params.variants},
        "signature": {key: results.read_signature(params, key) for key in params.variants},
        "mmlu_signature": {
            key: results.read_object(results.signature_file(results.MMLU, key)) for key in params.variants
        },
    }


def _findings(found: Results, params: Params) -> dict[str, Any]:
    """The verdicts by rule, and what each round of DPO moved."""
    moved = {
        key: [{name: round(value, comparison.DIGITS) for name, value in side.items()} for side in sides]
        for key, sides in found.dpo.movement.items()
    }
    return {"verdicts": [verdict.sentence for verdict in verdicts(found, params)], "movement": moved}


def _dialogue(params: Params) -> dict[str, Any]:
    """The replies of the variants with a model to a message, by the code of `attune chat`."""
    replies = {}
    for name, variant in params.variants.items():
        if variant.replies_file is None:
            reply, _ = begin(require(name, params), params).say(MESSAGE)
            replies[name] = "".join(reply)
    return {"message": MESSAGE, "replies": replies}


def _comparisons(params: Params, scores: Path) -> dict[str, Any]:
    """Whether the model is specialised or a substitute, and the differences of DPO from the standard approaches."""
    return {
        "specialised": params.model.specialised,
        comparison.STANDS_IN: params.model.stands_in_for,
        comparison.STANDARD: comparison.against_standard(params.variants, scores, _bootstrap(params)),
    }


def _bootstrap(params: Params) -> comparison.Bootstrap:
    return comparison.Bootstrap(params.context.targets, params.evaluate.resamples, params.seed)


def page(records: list[dict[str, Any]]) -> str:
    """`docs/results.md`: for each record the command, commit and machine, the tables, the pairs and the wall times.

    Args:
        records: in their order on the page, which begins with their verdicts.
    """
    contents = (f"- [{record['name']}](#{record['name']}): {_verdict(record)}" for record in records)
    opening = (
        "# Results\n\nWritten by `python -m attune record` from `docs/results/*.json`. `docs/metrics.md` defines every "
        "metric. ±: half the width of the 95 % bootstrap interval over the test examples (MMLU: of the normal interval "
        "over its questions); star: the interval of the difference to the reference variant excludes 0; "
        f"{AT_CHANCE}: at chance, the interval holds what guessing gives. Dist-n and "
        "repeated replies are counted over all replies at once and have no interval. One training seed each; the "
        "intervals do not cover the variation between seeds.\n\n" + "\n".join(contents) + "\n"
    )
    sections_of = (
        published_page.section(record, _origin(record)) if "ratings" in record else _section(record)
        for record in records
    )
    return "\n".join([opening, *sections_of])


def _verdict(record: dict[str, Any]) -> str:
    """A record's verdict in one line; without one, its command."""
    return " ".join(record["verdict"].split()) if "verdict" in record else f"`{record['command']}`"


def headline(record: dict[str, Any]) -> str:
    """A record's tables of variants, and the sentence that says how they were produced."""
    rows, notes = _variants(record)
    shown = [columns for columns in GROUPS.values() if any(columns.keys() & row.keys() for row in rows.values())]
    tables = (table("variant", with_people(rows, columns), columns, notes) for columns in shown)
    chances = dict.fromkeys(row["truth_chance"] for row in rows.values() if "truth_chance" in row)
    guessing = [f"Guessing is right in {chance:.1f} % of these questions of TruthfulQA." for chance in chances]
    return "\n\n".join([*tables, *guessing, _origin(record)]) + "\n"


def _origin(record: dict[str, Any]) -> str:
    """How a record was produced."""
    parts = parts_of(record)
    run = f"`{record['command']}`, commit {record['commit'][:12]}, {record['date']}, {in_words(record['machine'])}"
    if "ratings" in record:
        return f"{run}."
    data, pairs = next((part["data"], part["pairs"]) for part in parts.values())
    return (
        f"{run}: {data['train_dialogues']} train and {data['test_dialogues']} test dialogues, "
        f"{next(iter(pairs.values()))['pairs']} pairs in the first round."
    )


def front(records: list[dict[str, Any]]) -> str:
    """The block of the README: the record of EmPO, and links to the others; `NO_RECORD` without any."""
    if not records:
        return NO_RECORD
    shown = [
        f"{first_page.block(record, *_variants(record), FIGURE)}\n\n{_origin(record)}\n"
        for record in records
        if record["name"] == EMPO
    ]
    links = [f"[{record['name']}]({PAGE}#{record['name']})" for record in records if record["name"] != EMPO]
    word = "More records" if shown else "Records"
    return "\n".join([*shown, *([f"{word}: {', '.join(links)}.\n"] if links else [])])


def parts_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs of a record by their models; a record without models is a single run, named ""."""
    return dict(record["models"]) if "models" in record else {"": record}


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether all runs of a record have ended."""
    return all("metrics" in part for part in parts_of(record).values())


def _variants(record: dict[str, Any]) -> tuple[dict[str, Metrics], dict[str, dict[str, str]]]:
    """The record's variants with MMLU among their metrics, and their margins."""
    rows, intervals = _measured(record)
    return rows, {name: margins(bounds, VARIANT_COLUMNS) for name, bounds in intervals.items()}


def _measured(record: dict[str, Any]) -> tuple[dict[str, Metrics], dict[str, Metrics]]:
    """The metrics and the intervals of the record's variants, with MMLU's among them."""
    rows, found = {}, {}
    for model, part in parts_of(record).items():
        for key, metrics in part["metrics"].items():
            name = f"{model}, {key}" if model else key
            # Published replies have no MMLU.
            intervals = part.get("intervals", {}).get(key, {})
            mmlu, bounds = mmlu_columns(part.get("mmlu", {}).get(key, {}), intervals)
            rows[name] = metrics | mmlu
            found[name] = intervals | bounds | truth_chance(metrics)
    return rows, found


def insert(readme: str, block: str) -> str:
    """`readme` with `block` between its two marks.

    Raises:
        UserError: a mark is missing or repeated.
    """
    return between_marks(readme, BEGIN, END, f"\n{block}", README)


def _section(record: dict[str, Any]) -> str:
    versions = "torch {torch}, transformers {transformers}, TRL {trl}, Python {python}.".format(**record["machine"])
    parts = parts_of(record)
    rows, notes = _variants(record)
    blocks = []
    if quality := classifier_rows(next(iter(parts.values())).get("classifiers", {})):
        text = table("classifier", quality, measured(quality, CLASSIFIER_COLUMNS))
        blocks.append(f"### The classifiers behind the metrics\n\n{text}\n\n{CLASSIFIERS}\n")
    if record["name"] == EMPO and any(EMPATHY_COLUMNS.keys() & metrics.keys() for metrics in rows.values()):
        signatures = next(iter(parts.values()))["signature"]
        encoder = next(iter(signatures.values())).get("bertscore_encoder", "another encoder")
        blocks.append(beside_empo(rows, notes, encoder))
    if any("dbt_gap" in metrics for metrics in rows.values()):
        blocks.append(beside_dbt(rows, notes))
    blocks += sections(parts, record.get(BETWEEN, {}))
    tables = [text for model, part in parts.items() for text in _tables(model, part)]
    return "\n".join([f"## {record['name']}\n", headline(record), *blocks, versions, "", *tables])


def _tables(model: str, part: dict[str, Any]) -> list[str]:
    """The verdicts of a run, the tables of DPO and of pairs, and by kind of stage the wall times."""
    pairs = table("round", part["pairs"], measured(part["pairs"], PAIR_COLUMNS))
    title = [f"### {model}\n"] if model else []
    blocks = []
    if sentences := part.get("verdicts"):
        blocks += ["#### Verdicts by rule\n", *(f"- {escape(sentence)}" for sentence in sentences)]
    if moved := part.get("movement"):
        legend = f"On valid pairs (docs/metrics.md: margin); {movement.OUTSIDE}: outside its healthy range."
        blocks += ["", "#### What DPO moved\n", movement.rounds(moved), "", legend]
    return [*title, *blocks, "", "#### Pairs and wall time\n", pairs, "", _times(part["wall_seconds"]), ""]


def _times(seconds: dict[str, float]) -> str:
    """The wall time of all stages, and by their kind, longest first."""
    of_kind: dict[str, list[float]] = {}
    for stage, some in seconds.items():
        of_kind.setdefault(kind(stage), []).append(some)
    ordered = sorted(of_kind.items(), key=lambda one: -sum(one[1]))
    parts = ", ".join(f"{name} {sum(some):,.0f} s ({len(some)})" for name, some in ordered)
    return f"{sum(seconds.values()):,.0f} s for {len(seconds)} stages: {parts}."


def _begin(path: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """The interrupted record if it has the same commit and command and lacks results; else a new record."""
    new = _identity(name, shlex.join(["python", "-m", "attune", "record", name, *overrides]))
    identity = {key: new[key] for key in ("name", "command", "commit")}
    if path.is_file():
        old = _read(path)
        done = all("metrics" in old.get("models", {}).get(model, old) for model in compositions(overrides))
        if identity.items() <= old.items() and not done:
            return old
    times: dict[str, Any] = {"models": {}} if len(compositions(overrides)) > 1 else {"wall_seconds": {}}
    return new | times


def _identity(name: str, command: str) -> dict[str, Any]:
    """What a record says of how it was made.

    Raises:
        UserError: the working tree differs from its commit.
    """
    if _output("git", "status", "--porcelain", "--", "attune", "stages", "conf", "dvc.yaml", "data/sources.yaml"):
        raise UserError(
            "attune, stages, conf or dvc.yaml differ from the commit: commit first, so that the record names what ran"
        )
    made = {"date": date.today().isoformat(), "machine": machine()}
    return {"name": name, "command": command, "commit": commit()} | made


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(argv: Sequence[str]) -> None:
    """Run the recipe, if a name is given, and write the page and the tables of the README."""
    parser = command_parser("record", __doc__)
    parser.add_argument("name", nargs="?", help="of the record: docs/results/<name>.json")
    parser.add_argument("overrides", nargs="*", help="as of `dvc exp run -S`: recipe=empo model=smollm2")
    parser.add_argument("--published", action="store_true", help="score EmPO's published replies instead")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.published and arguments.name:
        parser.error("--published runs no recipe: leave the name out")
    # Before hours of work.
    insert(README.read_text(encoding="utf-8"), "")
    if arguments.published:
        run_published(RECORDS)
    if arguments.name:
        run(arguments.name, arguments.overrides, RECORDS)
    # The record of the README first.
    records = [_read(path) for path in sorted(RECORDS.glob("*.json"), key=lambda path: (path.stem != EMPO, path.stem))]
    for record in (record for record in records if not _is_whole(record)):
        print(f"{record['name']} is not finished, and left out: `{record['command']}` continues it", file=sys.stderr)
    records = [record for record in records if _is_whole(record)]
    if records:
        write_text(PAGE, page(records))
    for record in records:
        if record["name"] == EMPO:
            write_text(FIGURE, first_page.picture(*_measured(record)))
    write_text(README, insert(README.read_text(encoding="utf-8"), front(records)))
