"""The pairs of an epoch for corpora of any size: those of the definition, however the work is cut."""

import random
import re
import unicodedata
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attune.pairs.example_stream import example_batches
from attune.pairs.keyed_draws import BottomK, draw_all, keys_and_words, uniforms
from hypothesis import given, settings
from hypothesis import strategies as st

from attune.data.dialogue import Dialogue, Example, Turn, dialogue_table, normalise, text_keys, write_dialogues
from attune.data.examples import examples
from attune.data.keyed import random_part, uniform
from attune.pairs import opposite_emotion_stream
from attune.pairs.metrics import describe, measures, percent, repeated, write_pairs
from attune.pairs.opposite_emotion import build_pairs, draw, group_by_label
from attune.pairs.opposite_emotion_stream import Epoch, write_epoch
from attune.runtime.arrow_stream import GROUP, read_batches, scratch, table_writer
from attune.runtime.errors import DataError, UserError

OPPOSITES = {"joyful": "sad", "sad": "joyful", "proud": "ashamed", "ashamed": "proud"}
# Of replies so few are different that many draws meet the chosen one, in other letters.
REPLIES = ["Oh no!", "oh no", "I see.", "Well done, Zoë!", "WELL done zoë", "ﬁne", "fine", "Tell me more."]
turns = st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), st.sampled_from(REPLIES)), max_size=7)
dialogues = st.builds(
    Dialogue, st.text("a1:é-", min_size=1, max_size=3), st.just("test"), st.just("train"),
    st.sampled_from(sorted(OPPOSITES)), turns.map(tuple), st.none(),
)  # fmt: skip
corpora = st.lists(dialogues, min_size=1, max_size=40, unique_by=lambda one: one.id)


def defined(some, epoch):
    """The pairs by the definition, and their metrics."""
    found = [one for d in some for one in examples(d, epoch.targets, epoch.max_context_turns)]
    part, groups = random_part(found, epoch.limit, epoch.seed), group_by_label(found)
    pairs, *earlier = (
        build_pairs(part, groups, epoch.opposites, seed=epoch.seed, epoch=e) for e in range(epoch.number, 0, -1)
    )
    return part, pairs, [pair for one in earlier for pair in one]


def written(some, epoch, folder, group=7, **cut):
    """The rows and counts of `write_epoch`, of a file with `group` dialogues a row group."""
    table = dialogue_table(sorted(some, key=lambda one: one.id))
    pq.write_table(table, epoch.train, row_group_size=group)
    counts = write_epoch(epoch, folder / "pairs.parquet", folder / "work", **cut)
    assert not (folder / "work").exists()
    return (folder / "pairs.parquet").read_bytes(), counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("epoch")


@settings(max_examples=60, deadline=None)
@given(
    some=corpora, targets=st.sampled_from(["last", "every"]), window=st.sampled_from([None, 1, 2, 3]),
    limit=st.sampled_from([None, 1, 5, 400]), number=st.integers(1, 3), rows=st.integers(1, 40),
    group=st.integers(1, 40),
)  # fmt: skip
def test_an_epoch_is_that_of_the_definition(folder, some, targets, window, limit, number, rows, group):
    epoch = Epoch(folder / "train.parquet", targets, window, OPPOSITES, limit, 13, number)
    try:
        part, pairs, earlier = defined(some, epoch)
    except DataError as error:
        with pytest.raises(DataError, match=f"^{re.escape(str(error))}$"):
            written(some, epoch, folder, group, rows=rows)
        return
    if not pairs:
        with pytest.raises(DataError, match=rf"^no pair was made of {len(part)} dialogues: every opposite group"):
            written(some, epoch, folder, group, rows=rows)
        return
    content, counts = written(some, epoch, folder, group, rows=rows)
    write_pairs(pairs, folder / "defined.parquet")
    assert content == (folder / "defined.parquet").read_bytes()
    assert measures(counts, 4) == describe(part, pairs, 4)
    assert percent(counts["repeated_rejected"], len(pairs)) == repeated(pairs, earlier)["repeated_rejected"]


def many(count):
    """Dialogues of which four replies in five are the same within a label."""
    rng, labels = random.Random(3), sorted(OPPOSITES)
    return [
        Dialogue(f"train/{i}", "test", "train", rng.choice(labels),
                 (Turn("user", f"Story {i}."), Turn("assistant", rng.choice(["Oh!"] * 4 + [f"Reply {i % 50}."]))))
        for i in range(count)
    ]  # fmt: skip


def test_workers_write_the_bytes_that_one_process_writes(folder):
    some = many(500)
    epoch = Epoch(folder / "train.parquet", "last", None, OPPOSITES, None, 13, 2)
    one, counts = written(some, epoch, folder, workers=1)
    assert written(some, epoch, folder, rows=64, workers=2) == (one, counts)
    assert written(some, replace(epoch, seed=14), folder, workers=1)[0] != one


@given(st.lists(st.binary(max_size=12), max_size=5), st.integers(1, 2**32 - 1), st.integers(0, 99))
def test_a_column_of_draws_is_that_of_single_ones(ids, n, epoch):
    texts = [one.hex() for one in ids]
    found = uniforms(n, [one.encode() for one in texts], (13, epoch), (0,))
    assert found.tolist() == [uniform(n, 13, epoch, one, 0) for one in texts]
    places = uniforms(2**64, [one.encode() for one in texts], (13, "part"))
    assert places.tolist() == [uniform(2**64, 13, "part", one) for one in texts]


@pytest.mark.parametrize("same", [0, 1, 40, 399, 400])
def test_what_equals_the_chosen_reply_is_drawn_again(same):
    """Up to where 64 draws meet it and the others are listed, and where there is no other."""
    group = [example(f"g{i:03}", "Oh no!" if i < same else f"Reply {i}.") for i in range(400)]
    asking = [example(f"a{i}", "OH, no") for i in range(50)]
    found = draw_all([one.id.encode() for one in asking], keys(asking), keys(group), 13, 1)
    single = [draw(one, group, 13, 1) for one in asking]
    assert [group[i].id if i >= 0 else None for i in found] == [one and one.id for one in single]


def example(name, target):
    return Example(name, "sad", (Turn("user", "Hm."),), target)


def keys(some):
    return text_keys([normalise(one.target) for one in some])


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 20), st.integers(1, 9))
def test_the_lowest_of_many(numbers, limit, at_a_time):
    lowest = BottomK(limit)
    for start in range(0, len(numbers), at_a_time):
        lowest.add(np.array(numbers[start : start + at_a_time], np.uint64))
    assert lowest.last() == (sorted(numbers)[limit - 1] if len(numbers) > limit else None)


@given(st.text(st.characters(max_codepoint=127)) | st.text())
def test_text_is_compared_by_its_words(text):
    assert normalise(text) == " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
    (one, other, third) = text_keys([normalise(some) for some in (text, f"  {text}!", f"{text} x")])
    assert one == other != third


@given(st.lists(st.text(st.characters(max_codepoint=127)) | st.text() | st.text("a B\t\x1f'_-9é ")))
def test_texts_are_compared_together_as_one_by_one(texts):
    given = pa.chunked_array([texts[:2], [], texts[2:]], pa.string())
    keys, words = keys_and_words(given)
    assert keys.tolist() == text_keys([normalise(text) for text in texts]).tolist()
    assert words.tolist() == [len(text.split()) for text in texts]
    assert keys_and_words(given.slice(1))[0].tolist() == keys[1:].tolist()


def test_rows_in_another_order_are_refused(tmp_path):
    write_dialogues(many(20)[::-1], tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet: the rows are not in order of their ids: run `dvc repro -f"):
        list(example_batches(tmp_path / "train.parquet", "last", None))


def test_a_file_without_dialogues_gives_no_pair(tmp_path):
    write_dialogues([], tmp_path / "train.parquet")
    epoch = Epoch(tmp_path / "train.parquet", "last", None, OPPOSITES, 5, 13, 2)
    with pytest.raises(DataError, match=r"^no pair was made of 0 dialogues: every opposite group holds only"):
        write_epoch(epoch, tmp_path / "pairs.parquet", tmp_path / "work")
    assert not (tmp_path / "pairs.parquet").exists()


def test_a_stage_that_ends_early_leaves_nothing(folder, monkeypatch):
    epoch = Epoch(folder / "train.parquet", "last", None, OPPOSITES, None, 13, 1)
    before, _ = written(many(50), epoch, folder)
    monkeypatch.setattr(opposite_emotion_stream, "paired", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written(many(60), epoch, folder)
    assert {path.name for path in folder.iterdir()} <= {"train.parquet", "pairs.parquet", "defined.parquet"}
    assert (folder / "pairs.parquet").read_bytes() == before


@pytest.mark.parametrize("rows", [0, 1, GROUP, GROUP + 1, 2 * GROUP + 9])
def test_how_a_table_is_cut_moves_no_byte(tmp_path, rows):
    table = pa.table({"a": np.arange(rows) % 1000, "b": pa.array([f"text {i}" for i in range(rows)], pa.string())})
    pq.write_table(table, tmp_path / "whole", row_group_size=GROUP)
    for size in (1000, GROUP + 5):
        with table_writer(tmp_path / "cut", table.schema) as append:
            for start in range(0, rows, size):
                append(table.slice(start, size))
        assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert pa.concat_tables([table.slice(0, 0), *read_batches(tmp_path / "cut", 999)]) == table


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/old").write_text("half")
    with scratch(tmp_path / "work") as work:
        assert list(work.iterdir()) == []
    assert not work.exists()
