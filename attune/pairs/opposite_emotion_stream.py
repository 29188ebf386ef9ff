"""The pairs of an epoch by `opposite_emotion`, of corpora that need not fit into memory.

Draws are those of `opposite_emotion.draw`, bit for bit. A draw is made among the replies of one label, so the examples
are parted by label onto the disk, each label is drawn for by itself, in several processes where there are many
examples, and what was drawn is put beside the examples again, in order of their ids. A process holds the replies of one
label, with 12 bytes for each (its key and how many words it has) and for each example that it draws for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attune.data.dialogue import Targets
from attune.data.pair import Pair, schema_of
from attune.pairs.example_stream import example_batches
from attune.pairs.keyed_draws import BottomK, Keys, Places, draw_all, id_bytes, keys_and_words, uniforms
from attune.pairs.opposite_emotion import check_coverage
from attune.runtime.arrow_stream import ROWS, in_processes, prefetch, scratch, spill, spilled, table_writer
from attune.runtime.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

# Dialogues from which on another process is worth its start.
MANY = 200_000


@dataclass(frozen=True)
class Epoch:
    """What the draws of an epoch hang on.

    Args:
        train: the dialogues, as stage `prepare` wrote them.
        targets: as `attune.data.dialogue.examples`.
        max_context_turns: as there.
        opposites: label to opposite label.
        limit: as `pairs.limit`; the part is the same in every epoch.
        seed: of the run.
        number: from 1.
        future_epochs: whose rejected replies the pairs name, too.
    """

    train: Path
    targets: Targets
    max_context_turns: int | None
    opposites: Mapping[str, str]
    limit: int | None
    seed: int
    number: int
    future_epochs: Sequence[int] = ()

    def batches(self, rows: int, contexts: bool) -> Iterator[pa.Table]:
        """All examples, in order of their ids, with or without their contexts."""
        return prefetch(example_batches(self.train, self.targets, self.max_context_turns, rows, contexts))


class LabelPartitions(NamedTuple):
    """The examples by label: how many have it, the file of each label of the table, those asked for, the last place.

    The place of an example is a hash of (seed, id), as in `random_part`; None: all are asked for.
    """

    counts: Counter[str]
    files: dict[str, Path]
    asked: set[str]
    last: int | None


class Job(NamedTuple):
    """Draws for the examples in a file, among those in another one."""

    own: Path
    other: Path
    seed: int
    epoch: int
    future_epochs: Sequence[int]
    last: int | None


def write_epoch(epoch: Epoch, target: Path, work: Path, rows: int = ROWS, workers: int | None = None) -> Counter[str]:
    """Write the pairs of an epoch to a parquet file with the columns of `Pair`, in order of the ids.

    Args:
        epoch: what the draws hang on.
        target: the file.
        work: a folder for what is parted by label, which is made and removed.
        rows: of dialogues in hand at a time. Neither they nor the workers move a byte of the file.
        workers: processes; None: one, or of many examples one a core.

    Returns:
        Of the examples asked for their number, `asked`; of their pairs the number, `pairs`, of labels, `labels`, of
        words, `chosen_words` and `rejected_words`, of pairs whose rejected reply is the longer one, `longer_rejected`,
        and of those whose rejected reply an earlier epoch drew for the same dialogue, `repeated_rejected`.

    Raises:
        DataError: a label has no opposite, an opposite no replies, or no pair is left.
        UserError: as `example_batches`.
    """
    with scratch(work) as folder:
        with in_processes(workers or workers_for(epoch)) as run:
            parted = part_by_label(epoch, folder, rows)
            check_coverage(parted.asked, epoch.opposites, parted.counts)
            counts = draw_each(parted, epoch, run)
        if not counts["pairs"]:
            raise DataError(
                f"no pair was made of {counts['asked']} dialogues: every opposite group holds only the chosen reply"
            )
        drawn = {label: DrawnReplies(parted.files[label]) for label in parted.asked}
        with table_writer(target, schema_of(Pair)) as append:
            for batch in epoch.batches(rows, contexts=True):
                append(paired(batch, drawn, epoch))
    return counts


def part_by_label(epoch: Epoch, folder: Path, rows: int) -> LabelPartitions:
    """Write id, target and place of the examples to a file a label, in order of the ids."""
    import pyarrow as pa

    known = {*epoch.opposites, *epoch.opposites.values()}
    parted = LabelPartitions(Counter(), {}, set(), None)
    least: dict[str, int] = {}
    lowest = BottomK(epoch.limit) if epoch.limit else None
    with ExitStack() as stack:
        writers: dict[str, Any] = {}
        for batch in epoch.batches(rows, contexts=False):
            place = np.zeros(len(batch), np.uint64)
            if lowest:
                place = uniforms(2**64, id_bytes(batch["id"]), (epoch.seed, "part"))
                lowest.add(place)
            order, spans = by_label(batch["label"])
            table = batch.select(["id", "target"]).append_column("place", pa.array(place)).take(order)
            for label, start, end in spans:
                parted.counts[label] += end - start
                least[label] = min(least.get(label, 2**64), int(place[order[start:end]].min()))
                if label in known and label not in writers:
                    parted.files[label] = folder / str(len(writers))
                    writers[label] = stack.enter_context(pa.ipc.new_stream(parted.files[label], table.schema))
                if label in known:
                    writers[label].write_table(table.slice(start, end - start))
    last = lowest.last() if lowest else None
    return parted._replace(asked={label for label in least if last is None or least[label] <= last}, last=last)


def workers_for(epoch: Epoch) -> int | None:
    """The `workers` of a corpus: one, or where it is large one a core (None)."""
    import pyarrow.parquet as pq

    return None if pq.read_metadata(epoch.train).num_rows >= MANY else 1


def draw_each(parted: LabelPartitions, epoch: Epoch, run: Callable[..., Iterator[Any]]) -> Counter[str]:
    """Draw for every label that is asked for, and give the counts of `write_epoch`; `run` is of `in_processes`."""
    # The largest first, so that no process is left alone with it.
    labels = sorted(parted.asked, key=lambda label: (-parted.counts[label], label))
    files = [(parted.files[one], parted.files[epoch.opposites[one]]) for one in labels]
    jobs = [Job(own, other, epoch.seed, epoch.number, epoch.future_epochs, parted.last) for own, other in files]
    list(run(compare, sorted({file for both in files for file in both})))
    return sum(run(draw_for_label, jobs), Counter[str]())


def by_label(labels: pa.ChunkedArray) -> tuple[Places, list[tuple[str, int, int]]]:
    """The places in order of the labels, and where in that order each label begins and ends."""
    coded = labels.combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy()
    ends = np.cumsum(np.bincount(codes)).tolist()
    return np.argsort(codes, kind="stable"), list(zip(coded.dictionary.to_pylist(), [0, *ends], ends, strict=False))


def compare(file: Path) -> None:
    """Write the keys of the targets in a file of `part_by_label`, and how many words they have, beside it."""
    keys, words = zip(*(keys_and_words(table["target"]) for table in spilled(file)), strict=True)
    np.save(file.with_suffix(".keys.npy"), np.concatenate(keys))
    np.save(file.with_suffix(".words.npy"), np.concatenate(words))


def draw_for_label(job: Job) -> Counter[str]:
    """Write the rejected reply of each example of a label, its id and those `future_rejected`, in their order; give the counts.

    They are null for an example that is not asked for, or for which there is no other reply.
    """
    import pyarrow as pa

    group = pa.concat_tables(spilled(job.other))
    # More text than 32-bit offsets reach.
    replies = pa.table({"rejected": group["target"].cast(pa.large_string()), "rejected_id": group["id"]})
    replies = replies.combine_chunks()
    del group
    counts: Counter[str] = Counter()
    spill(job.own.with_suffix(".drawn"), (taken(replies, places) for places in drawn_places(job, counts)))
    return counts


def taken(replies: pa.Table, places: Places) -> pa.Table:
    """The rows of `replies` at the first of each example's places, and the texts at its others; null where it is -1."""
    import pyarrow as pa

    first, future_rejected = places[:, 0], places[:, 1:]
    made = first >= 0
    offsets = np.concatenate([[0], np.cumsum(made * future_rejected.shape[1])]).astype(np.int32)
    texts = replies["rejected"].take(pa.array(future_rejected[made].ravel())).combine_chunks().cast(pa.string())
    rows = replies.take(pa.array(first, mask=~made))
    return rows.append_column("future_rejected", pa.ListArray.from_arrays(offsets, texts))


def drawn_places(job: Job, counts: Counter[str]) -> Iterator[Places]:
    """The places of each example's rejected reply and of those future_rejected, (N, 1 + A), -1 without; `counts` grows."""
    own_keys, own_words = compared(job.own)
    keys, words = compared(job.other)
    start = 0
    for table in spilled(job.own):
        asked = np.flatnonzero(table["place"].to_numpy() <= (2**64 - 1 if job.last is None else job.last))
        ids, own = id_bytes(table["id"].take(asked)), start + asked
        found, *earlier = (draw_all(ids, own_keys[own], keys, job.seed, e) for e in range(job.epoch, 0, -1))
        future_rejected = [draw_all(ids, own_keys[own], keys, job.seed, e) for e in job.future_epochs]
        made = found >= 0
        rejected, chosen_words = found[made], own_words[own[made]]
        before = np.zeros(len(rejected), bool)
        for one in earlier:
            before |= keys[one[made]] == keys[rejected]
        counts["asked"] += len(asked)
        counts["pairs"] += len(rejected)
        counts["labels"] |= int(made.any())
        counts["chosen_words"] += int(chosen_words.sum())
        counts["rejected_words"] += int(words[rejected].sum())
        counts["longer_rejected"] += int((words[rejected] > chosen_words).sum())
        counts["repeated_rejected"] += int(before.sum())
        places = np.full((len(table), 1 + len(future_rejected)), -1)
        places[asked] = np.stack([found, *future_rejected], axis=1)
        yield places
        start += len(table)


def compared(file: Path) -> tuple[Keys, npt.NDArray[np.int64]]:
    """What `compare` wrote beside a file."""
    return np.load(file.with_suffix(".keys.npy")), np.load(file.with_suffix(".words.npy"))


class DrawnReplies:
    """What was drawn for a label, to be taken in the order of its examples."""

    def __init__(self, file: Path) -> None:
        self._batches = spilled(file.with_suffix(".drawn"))
        self._held = next(self._batches)

    def take(self, count: int) -> pa.Table:
        """The next rows."""
        import pyarrow as pa

        while len(self._held) < count:
            self._held = pa.concat_tables([self._held, next(self._batches)])
        taken, self._held = self._held.slice(0, count), self._held.slice(count)
        return taken


def paired(batch: pa.Table, drawn: Mapping[str, DrawnReplies], epoch: Epoch) -> pa.Table:
    """The pairs of a batch of examples."""
    import pyarrow as pa

    order, spans = by_label(batch["label"])
    # For an example whose label nobody draws for nothing is asked.
    wanted = [(order[start:end], drawn[label].take(end - start)) for label, start, end in spans if label in drawn]
    if not wanted:
        return schema_of(Pair).empty_table()
    places = np.concatenate([some for some, _ in wanted])
    beside = pa.concat_tables([rows for _, rows in wanted])
    there = np.flatnonzero(beside["rejected"].is_valid().to_numpy())
    there = there[np.argsort(places[there], kind="stable")]
    # Most often each example has a pair, and a copy of the contexts is saved.
    examples = batch if len(there) == len(batch) else batch.take(places[there])
    rejected = beside.take(there)
    columns = {
        "id": examples["id"],
        "epoch": pa.repeat(pa.scalar(epoch.number, pa.int32()), len(there)),
        "prompt": examples["context"],
        "chosen": examples["target"],
        "rejected": rejected["rejected"].cast(pa.string()),
        "label": examples["label"],
        "rejected_label": pa.array([epoch.opposites[label] for label in examples["label"].to_pylist()], pa.string()),
        "rejected_id": rejected["rejected_id"],
        "future_rejected": rejected["future_rejected"],
    }
    return pa.table(columns, schema=schema_of(Pair))
