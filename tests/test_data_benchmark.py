"""The benchmark of `prepare` and `pairs`: stream and peer write the same pairs, and memory does not grow."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT

from attune.config.params import load
from attune.data.dialogue import read_dialogues
from benchmarks import data


def params():
    committed = load(ROOT / "params.yaml")
    return replace(committed, pairs=replace(committed.pairs, table=str(ROOT / "data/opposite_emotions.csv")))


def test_stream_and_peer_write_the_same_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    data.make(tmp_path / data.RAW, 3000)
    monkeypatch.chdir(tmp_path)
    assert data.run("prepare", params())["pairs"] == 0
    metrics = json.loads(Path("metrics/data.json").read_text(encoding="utf-8"))
    assert metrics["dropped_train_overlap_with_held_out"] == 1  # of the copies 0, 1000 and 2000, the first is in test
    assert metrics["train_dialogues"] == len(read_dialogues(Path("data/dialogues/train.parquet"))) == 2399
    files = []
    for stage in ("pairs", "draws", "in_memory"):
        result = data.run(stage, params())
        assert result["pairs"] == 2399 and result["peak_memory_mib"] > 0
        files.append(Path("pairs.parquet").read_bytes())
    assert files[0] == files[2]
    assert not Path("data/.pairs").exists() and not Path("data/.prepare").exists()


# With buffers that the smaller corpus fills as well. Counts the allocations of Python and Arrow.
GROWTH = """
import sys, tracemalloc
from dataclasses import replace
from pathlib import Path
import pandas, pyarrow
from benchmarks import data
from stages import prepare
from attune.config.params import load
from attune.corpora import external_sort
from attune.runtime import arrow_stream, io
from attune.pairs.opposite_emotion_stream import Epoch, write_epoch
from attune.labels.opposites import read_opposites
arrow_stream.GROUP, io.BLOCK, prepare.CHUNK, external_sort.PIECE = 500, 1 << 15, 200, 1 << 12
external_sort.Runs.__init__.__defaults__ = (1 << 17,)
root, pool = Path(sys.argv[1]), pyarrow.default_memory_pool()
peaks = {}
tracemalloc.start()
params = load(root / "params.yaml")
pairs = replace(params.pairs, table=str(root / params.pairs.table))
prepare.main(params.corpus, pairs, 13)
peaks["prepare"] = tracemalloc.get_traced_memory()[1] + pool.max_memory()
tracemalloc.reset_peak()
epoch = Epoch(Path("data/dialogues/train.parquet"), "last", None, read_opposites(root / "data/opposite_emotions.csv"),
              None, 13, 2)
write_epoch(epoch, Path("pairs.parquet"), Path("work"), rows=200)
peaks["pairs"] = tracemalloc.get_traced_memory()[1] + pool.max_memory()
print(peaks["prepare"], peaks["pairs"])
"""
# Allowed growth in bytes a dialogue.
ALLOWED = 60


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    peaks = []
    for count in (2000, 10_000):
        folder = tmp_path / str(count)
        data.make(folder / data.RAW, count)
        command = [sys.executable, "-c", GROWTH, str(ROOT)]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        peaks.append([int(peak) for peak in done.stdout.splitlines()[-1].split()])
    for stage, first, last in zip(("prepare", "pairs"), *peaks, strict=True):
        assert last - first < 8000 * ALLOWED, (stage, first, last)


def test_growth_by_hand():
    sizes = {
        size: {"pairs": {"peak_memory_mib": peak}} for size, peak in (("100", 200), ("1000", 300), ("1148676", 202))
    }
    assert data.growth(sizes, "pairs") == pytest.approx(2 * 2**20 / 1_148_576, abs=0.1)
    assert data.growth({"100": sizes["100"]}, "pairs") is None
