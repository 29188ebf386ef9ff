"""The pairs of an epoch by `opposite_emotion.draw`, for corpora that need not fit into memory.

1. `partition_by_label` writes the examples, without contexts, to a file for each label.
2. `draw_for_label` draws for the examples of a label, from the file of the opposite label; labels are shared out to
   processes if there are many examples.
3. `join` reads the dialogues again, with contexts, and puts each example's draw beside it, in order of the ids.

A process holds the replies of one label, and for each of them 12 bytes (key and number of words) and its draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from attune.data.dialogue import Targets, normalise, text_keys
from attune.data.examples import example_batches
from attune.data.keyed import BottomK, subset_keys
from attune.data.pair import Pair, schema_of
from attune.labels.opposites import check_coverage
from attune.pairs.instruction import instructed_contexts
from attune.pairs.opposite_emotion import Positions, draw
from attune.runtime.arrow_stream import ROWS, in_processes, prefetch, scratch, spill, spilled, table_writer
from attune.runtime.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

# Dialogues from which on a second process is worth its start.
MANY = 200_000
# Every `subset_keys` is at most this.
ALL = 2**64 - 1


@dataclass(frozen=True)
class Epoch:
    """All that the draws of an epoch depend on.

    Args:
        train: the dialogues, as stage `prepare` wrote them.
        targets: as for `attune.data.examples.example_table`.
        max_turns: as there.
        opposites: label to opposite label.
        limit: as `pairs.limit`: sample this many examples, the same in every epoch; None: all.
        seed: of the run.
        number: from 1.
        future_epochs: whose rejected replies the pairs name as well.
        instruction: the system turn of every prompt; None: none.
    """

    train: Path
    targets: Targets
    max_turns: int | None
    opposites: Mapping[str, str]
    limit: int | None
    seed: int
    number: int
    future_epochs: Sequence[int] = ()
    instruction: str | None = None

    def batches(self, rows: int, contexts: bool) -> Iterator[pa.Table]:
        """All examples, in order of their ids, with or without their contexts."""
        return prefetch(example_batches(self.train, self.targets, self.max_turns, rows, contexts))


class LabelPartitions(NamedTuple):
    """The examples by label: their number, the file of each label of the table, and what is sampled.

    Examples whose `subset_keys` are at most `threshold` are sampled; `sampled` are their labels.
    """

    counts: Counter[str]
    files: dict[str, Path]
    sampled: set[str]
    threshold: int


class Job(NamedTuple):
    """Draw for the examples in file `examples`, from those in file `group`."""

    examples: Path
    group: Path
    seed: int
    epoch: int
    future_epochs: Sequence[int]
    threshold: int


def write_epoch(epoch: Epoch, target: Path, work: Path, rows: int = ROWS, workers: int | None = None) -> Counter[str]:
    """Write the pairs of an epoch to a parquet file with the columns of `Pair`, in order of the ids.

    Args:
        epoch: what the draws depend on.
        target: the file.
        work: scratch directory for the partitions; it is removed.
        rows: dialogues that are read at a time. Neither `rows` nor `workers` changes a byte of the file.
        workers: processes; None: one, or one a core if there are many dialogues.

    Returns:
        Counts: `examples`, the sampled ones; `pairs`, of these the ones with a pair; `labels`, `chosen_words` and
        `rejected_words` of the pairs; `longer_rejected`, pairs whose rejected reply is the longer one;
        `repeated_rejected`, pairs whose rejected text was drawn for the same example in an earlier epoch.

    Raises:
        DataError: a label has no opposite, an opposite has no replies, or no example has a pair.
        UserError: as `example_batches`.
    """
    with scratch(work) as folder:
        with in_processes(workers or workers_for(epoch)) as run:
            partitions = partition_by_label(epoch, folder, rows)
            check_coverage(partitions.sampled, epoch.opposites, partitions.counts)
            counts = draw_all(partitions, epoch, run)
        if not counts["pairs"]:
            raise DataError(
                f"no pair was made of {counts['examples']} dialogues: every opposite group holds only the chosen reply"
            )
        drawn = {label: DrawnReplies(partitions.files[label]) for label in partitions.sampled}
        with table_writer(target, schema_of(Pair)) as append:
            for batch in epoch.batches(rows, contexts=True):
                append(join(batch, drawn, epoch))
    return counts


def partition_by_label(epoch: Epoch, folder: Path, rows: int) -> LabelPartitions:
    """Write id, target and subset key of the examples to a file for each label, in order of the ids."""
    import pyarrow as pa

    known = {*epoch.opposites, *epoch.opposites.values()}
    counts, files = Counter[str](), dict[str, Path]()
    lowest_of: dict[str, int] = {}
    lowest = BottomK(epoch.limit) if epoch.limit else None
    with ExitStack() as stack:
        writers: dict[str, Any] = {}
        for batch in epoch.batches(rows, contexts=False):
            keys = np.zeros(len(batch), np.uint64)
            if lowest:
                keys = subset_keys(batch["id"].to_pylist(), epoch.seed)
                lowest.add(keys)
            order, spans = by_label(batch["label"])
            table = batch.select(["id", "target"]).append_column("subset_key", pa.array(keys)).take(order)
            for label, start, end in spans:
                counts[label] += end - start
                lowest_of[label] = min(lowest_of.get(label, ALL), int(keys[order[start:end]].min()))
                if label in known and label not in writers:
                    files[label] = folder / str(len(writers))
                    writers[label] = stack.enter_context(pa.ipc.new_stream(files[label], table.schema))
                if label in known:
                    writers[label].write_table(table.slice(start, end - start))
    threshold = lowest.threshold() if lowest else None
    threshold = ALL if threshold is None else threshold
    return LabelPartitions(counts, files, {label for label, key in lowest_of.items() if key <= threshold}, threshold)


def by_label(labels: pa.ChunkedArray) -> tuple[Positions, list[tuple[str, int, int]]]:
    """The positions in order of the labels, and where in that order each label starts and ends."""
    coded = labels.combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy()
    ends = np.cumsum(np.bincount(codes)).tolist()
    return np.argsort(codes, kind="stable"), list(zip(coded.dictionary.to_pylist(), [0, *ends], ends, strict=False))


def workers_for(epoch: Epoch) -> int | None:
    """The `workers` of a corpus: one, or one a core (None) if it is large."""
    import pyarrow.parquet as pq

    return None if pq.read_metadata(epoch.train).num_rows >= MANY else 1


def draw_all(partitions: LabelPartitions, epoch: Epoch, run: Callable[..., Iterator[Any]]) -> Counter[str]:
    """Draw for every sampled label, and return the counts of `write_epoch`; `run` is the map of `in_processes`."""
    # The largest first, so that it does not keep one process busy after the others have finished.
    labels = sorted(partitions.sampled, key=lambda label: (-partitions.counts[label], label))
    files = [(partitions.files[label], partitions.files[epoch.opposites[label]]) for label in labels]
    list(run(write_keys, sorted({file for both in files for file in both})))
    jobs = [Job(*both, epoch.seed, epoch.number, epoch.future_epochs, partitions.threshold) for both in files]
    return sum(run(draw_for_label, jobs), Counter[str]())


def write_keys(file: Path) -> None:
    """Write the text keys of the targets in a partition, and their numbers of words, to files beside it."""
    keys, words = [], []
    for table in spilled(file):
        texts = table["target"].to_pylist()
        keys.append(text_keys([normalise(text) for text in texts]))
        words.append(np.array([len(text.split()) for text in texts]))
    np.save(file.with_suffix(".keys.npy"), np.concatenate(keys))
    np.save(file.with_suffix(".words.npy"), np.concatenate(words))


def read_keys(file: Path) -> tuple[Any, Positions]:
    """What `write_keys` wrote, two arrays."""
    return np.load(file.with_suffix(".keys.npy")), np.load(file.with_suffix(".words.npy"))


def draw_for_label(job: Job) -> Counter[str]:
    """Write the rejected reply of each example of a label, its id and the future rejected replies; return the counts.

    Rows are in order of the examples, and null for one that is not sampled or for which there is no other text.
    """
    import pyarrow as pa

    group = pa.concat_tables(spilled(job.group))
    # 32-bit offsets do not reach over all the text of a large label.
    replies = pa.table({"rejected": group["target"].cast(pa.large_string()), "rejected_id": group["id"]})
    replies = replies.combine_chunks()
    del group
    counts: Counter[str] = Counter()
    spill(job.examples.with_suffix(".drawn"), (take(replies, some) for some in draw_batches(job, counts)))
    return counts


def draw_batches(job: Job, counts: Counter[str]) -> Iterator[Positions]:
    """The positions of each example's rejected reply and future ones, (N, 1 + F), -1 for none; adds to `counts`."""
    all_chosen, all_chosen_words = read_keys(job.examples)
    keys, words = read_keys(job.group)
    start = 0
    for table in spilled(job.examples):
        sampled = np.flatnonzero(table["subset_key"].to_numpy() <= job.threshold)
        ids, chosen = table["id"].take(sampled).to_pylist(), all_chosen[start + sampled]
        chosen_words = all_chosen_words[start + sampled]
        epochs = [job.epoch, *job.future_epochs, *range(1, job.epoch)]
        positions = np.stack([draw(ids, chosen, keys, job.seed, epoch) for epoch in epochs], axis=1)
        made = positions[:, 0] >= 0
        rejected, earlier = positions[made, 0], positions[made, 1 + len(job.future_epochs) :]
        counts["examples"] += len(sampled)
        counts["pairs"] += len(rejected)
        counts["labels"] |= int(made.any())
        counts["chosen_words"] += int(chosen_words[made].sum())
        counts["rejected_words"] += int(words[rejected].sum())
        counts["longer_rejected"] += int((words[rejected] > chosen_words[made]).sum())
        counts["repeated_rejected"] += int((keys[earlier] == keys[rejected][:, None]).any(axis=1).sum())
        rows = np.full((len(table), 1 + len(job.future_epochs)), -1)
        rows[sampled] = positions[:, : rows.shape[1]]
        yield rows
        start += len(table)


def take(replies: pa.Table, positions: Positions) -> pa.Table:
    """The replies at the first of each example's positions, and a list of the texts at its others; null for -1."""
    import pyarrow as pa

    first, future = positions[:, 0], positions[:, 1:]
    made = first >= 0
    offsets = np.concatenate([[0], np.cumsum(made * future.shape[1])]).astype(np.int32)
    texts = replies["rejected"].take(pa.array(future[made].ravel())).combine_chunks().cast(pa.string())
    rows = replies.take(pa.array(first, mask=~made))
    return rows.append_column("future_rejected", pa.ListArray.from_arrays(offsets, texts))


class DrawnReplies:
    """The rows of `draw_for_label`, to be taken in order."""

    def __init__(self, file: Path) -> None:
        self._batches = spilled(file.with_suffix(".drawn"))
        self._waiting = next(self._batches)

    def take(self, count: int) -> pa.Table:
        """The next `count` rows."""
        import pyarrow as pa

        while len(self._waiting) < count:
            self._waiting = pa.concat_tables([self._waiting, next(self._batches)])
        rows, self._waiting = self._waiting.slice(0, count), self._waiting.slice(count)
        return rows


def join(batch: pa.Table, drawn: Mapping[str, DrawnReplies], epoch: Epoch) -> pa.Table:
    """The pairs of a batch of examples."""
    import pyarrow as pa

    order, spans = by_label(batch["label"])
    # Skip labels that no sampled example has.
    taken = [(order[start:end], drawn[label].take(end - start)) for label, start, end in spans if label in drawn]
    if not taken:
        return schema_of(Pair).empty_table()
    positions, replies = np.concatenate([some for some, _ in taken]), pa.concat_tables([rows for _, rows in taken])
    made = np.flatnonzero(replies["rejected"].is_valid().to_numpy())
    made = made[np.argsort(positions[made], kind="stable")]
    # Usually every example has a pair, and a copy of the contexts is saved.
    examples = batch if len(made) == len(batch) else batch.take(positions[made])
    replies = replies.take(made)
    columns = {
        "id": examples["id"],
        "epoch": pa.repeat(pa.scalar(epoch.number, pa.int32()), len(made)),
        "prompt": instructed_contexts(examples["context"], epoch.instruction),
        "chosen": examples["target"],
        "rejected": replies["rejected"].cast(pa.string()),
        "label": examples["label"],
        "rejected_label": pa.array([epoch.opposites[label] for label in examples["label"].to_pylist()], pa.string()),
        "rejected_id": replies["rejected_id"],
        "future_rejected": replies["future_rejected"],
    }
    return pa.table(columns, schema=schema_of(Pair))
