"""The stream of an epoch's pairs equals the definition, however the work is split; its parts equal their formulas."""

import random
import re
import unicodedata
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attune.data.dialogue import Dialogue, Example, Turn, dialogue_table, normalise, text_keys, write_dialogues
from attune.data.examples import example_batches, examples
from attune.data.keyed import BottomK, random_subset, uniform, uniforms
from attune.pairs import opposite_emotion_stream
from attune.pairs.metrics import describe, measures, percent, repeated, write_pairs
from attune.pairs.opposite_emotion import ATTEMPTS, build_pairs, draw, draw_examples, group_by_label
from attune.pairs.opposite_emotion_stream import Epoch, write_epoch
from attune.runtime.arrow_stream import GROUP, read_batches, scratch, table_writer, write_table
from attune.runtime.errors import DataError, UserError

OPPOSITES = {"joyful": "sad", "sad": "joyful", "proud": "ashamed", "ashamed": "proud"}
# So few different texts that many draws hit the chosen one, in other letters.
REPLIES = ["Oh no!", "oh no", "I see.", "Well done, Zoë!", "WELL done zoë", "ﬁne", "fine", "Tell me more."]
turns = st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), st.sampled_from(REPLIES)), max_size=7)
dialogues = st.builds(
    Dialogue, st.text("a1:é-", min_size=1, max_size=3), st.just("test"), st.just("train"),
    st.sampled_from(sorted(OPPOSITES)), turns.map(tuple), st.none(),
)  # fmt: skip
corpora = st.lists(dialogues, min_size=1, max_size=40, unique_by=lambda dialogue: dialogue.id)


def in_memory(corpus, epoch):
    """The sampled examples, their pairs by `build_pairs`, and the pairs of the earlier epochs."""
    everything = examples(corpus, epoch.targets, epoch.max_turns)
    subset, groups = random_subset(everything, epoch.limit, epoch.seed), group_by_label(everything)
    pairs, *earlier = (
        build_pairs(subset, groups, epoch.opposites, seed=epoch.seed, epoch=e) for e in range(epoch.number, 0, -1)
    )
    return subset, pairs, [pair for some in earlier for pair in some]


def streamed(corpus, epoch, folder, group=7, **options):
    """The bytes and counts of `write_epoch`, from a file with `group` dialogues a row group."""
    pq.write_table(dialogue_table(sorted(corpus, key=lambda d: d.id)), epoch.train, row_group_size=group)
    counts = write_epoch(epoch, folder / "pairs.parquet", folder / "work", **options)
    assert not (folder / "work").exists()
    return (folder / "pairs.parquet").read_bytes(), counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("epoch")


@settings(max_examples=40, deadline=None)
@given(
    corpus=corpora, targets=st.sampled_from(["last", "every"]), max_turns=st.sampled_from([None, 1, 2, 3]),
    limit=st.sampled_from([None, 1, 5, 400]), number=st.integers(1, 3), rows=st.integers(1, 40),
    group=st.integers(1, 40),
)  # fmt: skip
def test_stream_equals_definition(folder, corpus, targets, max_turns, limit, number, rows, group):
    epoch = Epoch(folder / "train.parquet", targets, max_turns, OPPOSITES, limit, 13, number)
    try:
        subset, pairs, earlier = in_memory(corpus, epoch)
    except DataError as error:
        with pytest.raises(DataError, match=f"^{re.escape(str(error))}$"):
            streamed(corpus, epoch, folder, group, rows=rows)
        return
    if not pairs:
        with pytest.raises(DataError, match=rf"^no pair was made of {len(subset)} dialogues: every opposite group"):
            streamed(corpus, epoch, folder, group, rows=rows)
        return
    content, counts = streamed(corpus, epoch, folder, group, rows=rows)
    write_pairs(pairs, folder / "in_memory.parquet")
    assert content == (folder / "in_memory.parquet").read_bytes()
    assert measures(counts, 4) == describe(subset, pairs, 4)
    assert percent(counts["repeated_rejected"], len(pairs)) == repeated(pairs, earlier)["repeated_rejected"]


def many(count):
    """Dialogues; within a label four replies in five are the same."""
    rng, labels = random.Random(3), sorted(OPPOSITES)
    return [
        Dialogue(f"train/{i}", "test", "train", rng.choice(labels),
                 (Turn("user", f"Story {i}."), Turn("assistant", rng.choice(["Oh!"] * 4 + [f"Reply {i % 50}."]))))
        for i in range(count)
    ]  # fmt: skip


def test_workers_change_no_byte(folder):
    corpus = many(500)
    epoch = Epoch(folder / "train.parquet", "last", None, OPPOSITES, None, 13, 2)
    content, counts = streamed(corpus, epoch, folder, workers=1)
    assert streamed(corpus, epoch, folder, rows=64, workers=2) == (content, counts)
    assert streamed(corpus, replace(epoch, seed=14), folder, workers=1)[0] != content


@given(st.lists(st.text(max_size=12), max_size=5), st.integers(1, 2**32 - 1), st.integers(0, 99))
def test_uniforms_equal_uniform(ids, n, epoch):
    assert uniforms(n, ids, (13, epoch), (0,)).tolist() == [uniform(n, 13, epoch, id, 0) for id in ids]
    assert uniforms(2**64, ids, (13, "part")).tolist() == [uniform(2**64, 13, "part", id) for id in ids]


def draw_by_formula(id, chosen, group, seed, epoch):
    """The rule for one example, in plain Python."""
    for attempt in range(ATTEMPTS):
        position = uniform(len(group), seed, epoch, id, attempt)
        if group[position] != chosen:
            return position
    others = [i for i, text in enumerate(group) if text != chosen]
    return others[uniform(len(others), seed, epoch, id, ATTEMPTS)] if others else -1


@pytest.mark.parametrize("same", [0, 1, 40, 399, 400])
def test_draw_equals_formula(same):
    """Up to groups whose other texts are listed, and to one without another text."""
    group = [f"g{i}" if i >= same else "oh no" for i in range(400)]
    ids, chosen = [f"a{i}" for i in range(50)], ["oh no"] * 40 + [f"g{i}" for i in range(390, 400)]
    expected = [draw_by_formula(id, text, group, 13, 1) for id, text in zip(ids, chosen, strict=True)]
    by_text = draw(ids, np.array(chosen, object), np.array(group, object), 13, 1)
    by_key = draw(ids, text_keys(chosen), text_keys(group), 13, 1)
    assert by_text.tolist() == by_key.tolist() == expected


def test_draw_compares_normalised_texts():
    group = [Example(f"g{i}", "sad", (), text) for i, text in enumerate(["Oh no!"] * 9 + ["I see."])]
    asked = [Example(f"a{i}", "sad", (), "OH, no") for i in range(20)]
    assert draw_examples(asked, group, 13, 1) == [group[9]] * 20
    assert draw_examples(asked, group[:9], 13, 1) == draw_examples(asked, [], 13, 1) == [None] * 20


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 20), st.integers(1, 9))
def test_bottom_k_threshold(numbers, limit, size):
    lowest = BottomK(limit)
    for start in range(0, len(numbers), size):
        lowest.add(np.array(numbers[start : start + size], np.uint64))
    assert lowest.threshold() == (sorted(numbers)[limit - 1] if len(numbers) > limit else None)


@given(st.text(st.characters(max_codepoint=127)) | st.text())
def test_normalise_and_text_keys(text):
    assert normalise(text) == " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
    first, same, other = text_keys([normalise(some) for some in (text, f"  {text}!", f"{text} x")])
    assert first == same != other


def test_unsorted_dialogues_are_refused(tmp_path):
    write_dialogues(many(20)[::-1], tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet: the rows are not in order of their ids: run `dvc repro -f"):
        list(example_batches(tmp_path / "train.parquet", "last", None))


def test_empty_file_has_no_pairs(tmp_path):
    write_dialogues([], tmp_path / "train.parquet")
    epoch = Epoch(tmp_path / "train.parquet", "last", None, OPPOSITES, 5, 13, 2)
    with pytest.raises(DataError, match=r"^no pair was made of 0 dialogues: every opposite group holds only"):
        write_epoch(epoch, tmp_path / "pairs.parquet", tmp_path / "work")
    assert not (tmp_path / "pairs.parquet").exists()


def test_failed_epoch_leaves_the_old_file(folder, monkeypatch):
    epoch = Epoch(folder / "train.parquet", "last", None, OPPOSITES, None, 13, 1)
    before, _ = streamed(many(50), epoch, folder)
    monkeypatch.setattr(opposite_emotion_stream, "join", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        streamed(many(60), epoch, folder)
    assert {path.name for path in folder.iterdir()} <= {"train.parquet", "pairs.parquet", "in_memory.parquet"}
    assert (folder / "pairs.parquet").read_bytes() == before


@pytest.mark.parametrize("rows", [0, 1, GROUP, GROUP + 1, 2 * GROUP + 9])
def test_splits_of_a_table_change_no_byte(tmp_path, rows):
    table = pa.table({"a": np.arange(rows) % 1000, "b": pa.array([f"text {i}" for i in range(rows)], pa.string())})
    pq.write_table(table, tmp_path / "pyarrow", row_group_size=GROUP)
    write_table(tmp_path / "whole", table)
    with table_writer(tmp_path / "split", table.schema) as append:
        for start in range(0, rows, 1000):
            append(table.slice(start, 1000))
    files = {(tmp_path / name).read_bytes() for name in ("pyarrow", "whole", "split")}
    assert len(files) == 1
    assert pa.concat_tables([table.slice(0, 0), *read_batches(tmp_path / "split", 999)]) == table


def test_scratch_clears_what_a_killed_run_left(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/old").write_text("half")
    with scratch(tmp_path / "work") as work:
        assert list(work.iterdir()) == []
    assert not work.exists()
