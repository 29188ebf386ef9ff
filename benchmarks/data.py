"""Seconds and peak memory of stages `prepare` and `pairs` against the size of the corpus.

    python -m benchmarks.data
    python -m benchmarks.data --dialogues 2000 20000

makes corpora of 100 thousand, 1 million and 10 million dialogues in EmpatheticDialogues' format (four turns of about
ten words, 32 emotions, 8 in 10 train, seeded), each in a folder that is removed again, and runs both stages on each, in
processes of their own. Imports are left out of the seconds, and not of the memory, which is the most that the stage's
process held; of its workers' peaks the largest is given, or that process's own, where it is larger: Linux does not tell
them apart. `draws` are what `pairs` does in several processes: keys of the replies, draws, and what was drawn written
by label.

The peer is the definition of the pairs (`opposite_emotion.build_pairs`) on a list of examples in memory, on the
smallest corpus, from the dialogues' file to the pairs'.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from attune.config.params import load
from attune.config.schema import Params
from attune.corpora.readers.empathetic_dialogues import COLUMNS
from attune.data.examples import read_examples
from attune.labels.opposites import read_opposites
from attune.pairs.build import TRAIN
from attune.pairs.metrics import write_pairs
from attune.pairs.opposite_emotion import build_pairs, group_by_label
from attune.pairs.opposite_emotion_stream import Epoch, draw_all, partition_by_label, workers_for, write_epoch
from attune.report.charts import Chart, as_svg, specification, static
from attune.runtime.arrow_stream import ROWS, in_processes, scratch
from attune.runtime.io import write_json, write_text
from attune.runtime.machine import machine
from benchmarks import measure
from stages import pairs, prepare

SIZES = (100_000, 1_000_000, 10_000_000)
STAGES = ("prepare", "pairs", "draws")
PEERS = ("pairs", "in_memory")
FOLDER = Path("data/.benchmark")
FIGURE = Path("docs/figures/data.svg")
RAW = Path("data/raw/empatheticdialogues")
TARGET = Path("pairs.parquet")
# Of ten dialogues.
SHARES = {"train": 8, "valid": 1, "test": 1}
SEED = 20260101
Measured = Mapping[str, Mapping[str, Mapping[str, float]]]


def make(folder: Path, count: int) -> None:
    """Write a corpus; of a thousand train dialogues one is a copy of a test dialogue, of four replies one is common."""
    draw = random.Random(SEED)
    words = [f"{draw.choice('bdfgklmnprst')}{draw.choice('aeiou')}{draw.choice('bdfgklmnprst')}" for _ in range(2000)]
    some = [" ".join(draw.choices(words, k=draw.randint(4, 16))).capitalize() + "." for _ in range(5000)]
    labels = sorted(read_opposites(Path("data/opposite_emotions.csv")))
    folder.mkdir(parents=True)
    for split, share in SHARES.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8") as file:
            file.write(",".join(COLUMNS) + "\n")
            for i in range(count * share // 10):
                file.write(dialogue(i, split, some, labels))


def dialogue(i: int, split: str, some: list[str], labels: list[str]) -> str:
    """The rows of the dialogue `i` of a split."""
    own = f"test {i}" if split == "test" or i % 1000 == 0 else f"{split} {i}"
    texts = [some[(i * step + 7) % len(some)] for step in (1, 3, 7, 11)]
    last = texts[3] if i % 4 == 0 else f"{texts[3]} {own}"
    start = f"hit:{i}_conv:{2 * i}"
    about = f"{labels[i * 31 % len(labels)]},I was."
    said = (f"{own} {texts[0]}", texts[1], texts[2], last)
    return "".join(f"{start},{n},{about},{n % 2},{text}\n" for n, text in enumerate(said, start=1))


def run(stage: str, params: Params) -> dict[str, float]:
    """Run a stage in this folder; its seconds, those of all cores, the pairs that were made, and peaks of memory."""
    # Arrow imports pandas with the first array; before the clock starts.
    for name in ("pandas", "pyarrow.compute", "pyarrow.parquet"):
        import_module(name)
    corpus, context, opposites = params.corpus, params.context, read_opposites(Path(params.pairs.table))
    epoch = Epoch(TRAIN, context.targets, context.max_turns, opposites, None, params.seed, 1)
    made = 0
    started, before = time.perf_counter(), time.process_time()
    match stage:
        case "prepare":
            prepare.main(corpus, params.pairs, params.seed)
        case "pairs":
            made = write_epoch(epoch, TARGET, pairs.WORK)["pairs"]
        case "draws":
            with scratch(pairs.WORK) as folder, in_processes(workers_for(epoch)) as processes:
                partitions = partition_by_label(epoch, folder, ROWS)
                started, before = time.perf_counter(), time.process_time()
                made = draw_all(partitions, epoch, processes)["pairs"]
        case _:
            found = read_examples(TRAIN, context)
            listed = build_pairs(found, group_by_label(found), opposites, seed=params.seed, epoch=1)
            write_pairs(listed, TARGET)
            made = len(listed)
    spent, workers = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(spent, 2),
        "cpu_seconds": round(time.process_time() - before + workers.ru_utime + workers.ru_stime, 2),
        "pairs": made,
        "peak_memory_mib": measure.peak(),
        "worker_memory_mib": workers.ru_maxrss // 1024,
    }


def main(sizes: Sequence[int]) -> None:
    """Measure, print, draw and write the result."""
    measured: dict[str, dict[str, dict[str, float]]] = {}
    rounds: list[tuple[float, ...]] = []
    for size in sizes:
        shutil.rmtree(FOLDER, ignore_errors=True)
        try:
            make(FOLDER / RAW, size)
            measured[str(size)] = {stage: apart(stage) for stage in STAGES}
            if not rounds:
                rounds = measure.turns(*(partial(seconds_apart, one) for one in PEERS))
        finally:
            shutil.rmtree(FOLDER, ignore_errors=True)
        save(measured, rounds)
    draw(measured)


def save(measured: Measured, rounds: Sequence[tuple[float, ...]]) -> None:
    """Write the results of the sizes so far."""
    smallest = next(iter(measured))
    case = {
        "unit": "pairs",
        "over": {"in_memory": measure.compared(rounds, int(measured[smallest]["pairs"]["pairs"]))},
        "data": "made dialogues of four turns, 32 emotions, 8 in 10 train",
        "machine": machine(),
    }
    result = {
        "cases": {f"{int(smallest):,} dialogues": case},
        "sizes": measured,
        "bytes_a_dialogue": {stage: growth(measured, stage) for stage in STAGES},
    }
    write_json(measure.RESULTS / "data.json", result)


def apart(stage: str) -> dict[str, float]:
    """What `run` gives in a process of its own, in the folder of the corpus.

    Raises:
        CalledProcessError: the process failed; what it wrote to stderr has been seen.
    """
    root = Path.cwd()
    command = [sys.executable, "-m", "benchmarks.data", "--stage", stage, "--params", str(root / "params.yaml")]
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=FOLDER, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def seconds_apart(stage: str) -> float:
    return apart(stage)["seconds"]


def growth(measured: Measured, stage: str) -> float | None:
    """Bytes by which the peak of a stage's process grows a dialogue, from the smallest corpus to the largest."""
    sizes = [int(size) for size in measured]
    if len(sizes) < 2:
        return None
    first, last = (measured[str(size)][stage]["peak_memory_mib"] for size in (sizes[0], sizes[-1]))
    return round((last - first) * 2**20 / (sizes[-1] - sizes[0]), 1)


def draw(measured: Measured) -> None:
    """Write the figure: seconds against dialogues on logarithmic axes, and the peak of memory."""
    panels = [
        Chart("seconds", panel(measured, "seconds", log=True), ""),
        Chart("peak memory, MiB", panel(measured, "peak_memory_mib", log=False), ""),
    ]
    write_text(FIGURE, as_svg(static(panels, columns=2, width=300)))


def panel(measured: Measured, key: str, log: bool) -> dict[str, Any]:
    """A line for each stage over the number of dialogues."""
    import altair as alt

    rows = [
        {"dialogues": int(size), "value": stages[stage][key], "stage": stage}
        for size, stages in measured.items()
        for stage in STAGES
    ]
    grown = alt.Scale(type="log")
    return specification(
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X(
                "dialogues:Q",
                scale=grown,
                axis=alt.Axis(values=[int(size) for size in measured], labelExpr="format(datum.value, ',')"),
            ),
            y=alt.Y("value:Q", title=None, scale=grown if log else alt.Undefined),
            color=alt.Color("stage:N", sort=None, legend=alt.Legend(title=None)),
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, nargs="+", default=SIZES, help="sizes, the smallest first")
    parser.add_argument("--stage", choices=(*STAGES, "in_memory"), help=argparse.SUPPRESS)
    parser.add_argument("--params", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.stage:
        given = load(chosen.params)
        table = str(chosen.params.parent / given.pairs.table)
        print(json.dumps(run(chosen.stage, replace(given, pairs=replace(given.pairs, table=table)))))
    else:
        main(chosen.dialogues)
