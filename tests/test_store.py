"""Dialogues of a corpus of any size: in order of their ids, without copies, whatever is in memory at a time."""

import re
import tracemalloc
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attune.corpora import external_sort as runs_module
from attune.corpora.external_sort import Runs
from attune.corpora.leakage import copied, texts_of
from attune.corpora.readers.empathetic_dialogues import read, stream
from attune.corpora.splitting import Store
from attune.data.dialogue import SPLITS, Dialogue, Turn, read_dialogues
from attune.runtime import io
from attune.runtime.errors import DataError
from attune.runtime.io import read_lines, read_text

SAID = [
    "Oh no!",
    "oh, NO",
    "My dog died.",
    "my dog died",
    "Yes.",
    "It was a long day and I have been so tired of all of it since.",
]
turns = st.lists(st.sampled_from(SAID), min_size=2, max_size=5).map(
    lambda texts: tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
)
dialogues = st.builds(
    Dialogue, st.text("ab1é", min_size=1, max_size=4), st.sampled_from("xy"), st.sampled_from(SPLITS), st.just("sad"),
    turns, st.none(),
)  # fmt: skip
corpora = st.lists(dialogues, max_size=30, unique_by=lambda one: one.id)


def defined(some):
    """What is kept, by texts."""
    texts = {split: {text for d in some if d.split == split for text in texts_of(d.turns)} for split in SPLITS}
    above = {"test": set(), "valid": texts["test"], "train": texts["test"] | texts["valid"]}
    kept = [one for one in some if not copied(one.turns) & above[one.split]]
    return {split: sorted((d for d in kept if d.split == split), key=lambda d: d.id) for split in SPLITS}


@settings(max_examples=60, deadline=None)
@given(some=corpora, chunk=st.integers(1, 31), run=st.sampled_from([1, 2000, 1 << 26]), piece=st.sampled_from([1, 800]))
def test_what_is_written_is_that_of_the_definition(tmp_path_factory, some, chunk, run, piece):
    folder, dropped = tmp_path_factory.mktemp("store"), Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_module.Runs.__init__, "__defaults__", (run,))
        patch.setattr(runs_module, "PIECE", piece)
        store = Store(folder, {}, 0)
        for start in range(0, len(some), chunk):
            store.add(some[start : start + chunk])
        counts = store.write(folder, dropped)
    expected = defined(some)
    for split in SPLITS:
        assert read_dialogues(folder / f"{split}.parquet") == expected[split]
        assert counts[f"{split}_dialogues"] == len(expected[split])
        assert counts[f"{split}_turns"] == sum(len(one.turns) for one in expected[split])
    lost = Counter(one.split for one in some)
    assert dropped == Counter(
        train_overlap_with_held_out=lost["train"] - len(expected["train"]),
        valid_overlap_with_test=lost["valid"] - len(expected["valid"]),
    )


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 99)), max_size=8), st.integers(1, 400), st.integers(1, 400))
def test_runs_come_back_in_order(tmp_path_factory, parts, run, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_module, "PIECE", piece)
        runs = Runs(tmp_path_factory.mktemp("runs") / "x", run)
        for part in parts:
            runs.add(pa.table({"id": pa.array([str(n) for n in part], pa.string()), "n": pa.array(part, pa.int64())}))
        tables = list(runs.in_order())
    found = [str(n) for table in tables for n in table["n"].to_pylist()]
    assert found == sorted(str(n) for part in parts for n in part)
    assert sorted(n for table in runs.in_any_order() for n in table["n"].to_pylist()) == sorted(map(int, found))


ENDS = st.sampled_from(["\n", "\r\n", "\r"])
pieces = st.lists(st.text("aé😀\u2028 ,", max_size=5) | ENDS, max_size=12)


@settings(deadline=None)
@given(pieces, st.integers(1, 9), st.booleans())
def test_lines_are_independent_of_the_block_size(tmp_path_factory, pieces, block, mark):
    path = tmp_path_factory.mktemp("lines") / "x"
    path.write_bytes(b"\xef\xbb\xbf" * mark + "".join(pieces).encode())
    whole = read_text(path, DataError, "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "BLOCK", block)
        assert list(read_lines(path, DataError, "")) == whole


@settings(deadline=None)
@given(pieces, pieces, st.sampled_from([b"\xff", b"\0", b"\xe9"]), st.integers(1, 9))
def test_errors_of_bad_bytes_are_independent_of_the_block_size(tmp_path_factory, before, after, bad, block):
    path = tmp_path_factory.mktemp("lines") / "x"
    path.write_bytes("".join(before).encode() + bad + b"\n" + "".join(after).encode())
    with pytest.raises(DataError) as whole:
        read_text(path, DataError, "")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match=f"^{re.escape(str(whole.value))}$"):
        patch.setattr(io, "BLOCK", block)
        list(read_lines(path, DataError, ""))


def csv(folder, count, repeated=()):
    """EmpatheticDialogues' files with `count` train dialogues; those in `repeated` come once more at the end."""
    header = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n"
    rows = "c{0},1,sad,I was sad.,1,My story is number {0}_comma_ a sad one.,,\nc{0},2,sad,I was sad.,0,Oh no!,,\n"
    for split in SPLITS:
        with (folder / f"{split}.csv").open("w", encoding="utf-8") as file:
            file.write(header)
            file.writelines(rows.format(i) for i in [*range(count if split == "train" else 3), *repeated])
    return folder


def test_rows_that_stand_apart_are_named_in_whatever_block(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "BLOCK", 1000)
    csv(tmp_path, 200, repeated=[7, 5])
    with pytest.raises(DataError, match=r"train\.csv:402: the rows of dialogue 'c7' are not together$"):
        read(tmp_path)


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    """Beyond the 8 bytes that a reader keeps of each id."""
    monkeypatch.setattr(io, "BLOCK", 1 << 16)
    peaks = []
    for count in (2000, 12000):
        (tmp_path / str(count)).mkdir()
        csv(tmp_path / str(count), count)
        tracemalloc.start()
        assert sum(1 for _ in stream(tmp_path / str(count), Counter())) == count + 6
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 10_000 * 12, peaks


def test_the_place_of_a_mixture_is_that_of_seed_and_id(tmp_path):
    some = [Dialogue(f"{name}/{i}", name, "train", "x", (Turn("user", f"{name} {i}"), Turn("assistant", "Yes.")))
            for name in "xy" for i in range(30)]  # fmt: skip
    written = []
    for name, order in (("a", some), ("b", some[::-1])):
        (tmp_path / name).mkdir()
        store, dropped = Store(tmp_path / name, {"x": 1, "y": 2}, 13), Counter()
        store.add(order[:20])
        store.add(order[20:])
        counts = store.write(tmp_path / name, dropped)
        assert (counts["x_train_dialogues"], counts["y_train_dialogues"]) == (15, 30)
        assert dropped["train_beyond_weight"] == 15
        written.append((tmp_path / name / "train.parquet").read_bytes())
    assert written[0] == written[1]
