"""From dialogues to examples: which assistant turns are targets, and what their contexts are.

`example_table` is the definition, for a table of dialogues. `examples` and `read_examples` return its rows as `Example`
objects; `example_batches` reads files that need not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attune.data.dialogue import Dialogue, Example, Targets, dialogue_table, to_turns
from attune.runtime.arrow_stream import ROWS, read_batches
from attune.runtime.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from attune.config.schema import Context

Positions = npt.NDArray[np.int64]
# The columns of dialogues that `example_table` reads, without and with contexts.
COLUMNS = ("id", "label", "turns.list.element.role", "turns.list.element.text")
ALL_COLUMNS = ("id", "label", "turns", "quality")


def example_table(dialogues: pa.Table, targets: Targets, max_turns: int | None, contexts: bool = True) -> pa.Table:
    """The examples of dialogues: a row for each target, in the order of the dialogues and turns.

    Args:
        dialogues: the columns of `dialogue_table`. Turns alternate.
        targets: last: the last assistant turn of a dialogue, if a user turn precedes it (EmPO section 3); the example
            has the dialogue's id. every: each assistant turn except an opening one; its id is `<dialogue id>:<index of
            the turn>`.
        max_turns: the context is the last `max_turns` turns before the target; None: all of them. It starts with a
            user turn, so an even number keeps one turn less. The dialogue's system turn stands before them, uncounted.
        contexts: if False, only id, label and target are returned, which needs half of the columns (`COLUMNS`).

    Returns:
        The columns id, label, target, and with `contexts` context (a list of turns), act (of the target) and quality.
        A dialogue without a target has no row (stage `prepare` drops and counts such dialogues).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = dialogues["turns"].combine_chunks()
    turns, owner = lists.flatten(), pc.list_parent_indices(lists).to_numpy()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    # The position in `turns` of each dialogue's first turn.
    start = offsets[:-1] - offsets[0]
    is_assistant = pc.equal(turns.field("role"), "assistant").to_numpy(zero_copy_only=False)
    target = np.flatnonzero(is_assistant & (np.arange(len(turns)) > start[owner]))
    if targets == "last" and len(target):
        target = target[np.append(owner[target][1:] != owner[target][:-1], True)]
    dialogue = owner[target]
    ids = dialogues["id"].combine_chunks().take(pa.array(dialogue))
    if targets == "every":
        ids = pc.binary_join_element_wise(ids, pa.array(target - start[dialogue]).cast(pa.string()), ":")
    columns = {
        "id": ids,
        "label": dialogues["label"].combine_chunks().take(pa.array(dialogue)),
        "target": turns.field("text").take(pa.array(target)),
    }
    if contexts:
        first = start[dialogue] if max_turns is None else np.maximum(start[dialogue], target - max_turns)
        columns |= {
            "context": slices(
                turns, np.minimum(next_user(turns)[first], target), target, lists.type, _system(turns, start[dialogue])
            ),
            "act": turns.field("act").take(pa.array(target)),
            "quality": dialogues["quality"].combine_chunks().take(pa.array(dialogue)),
        }
    return pa.table(columns)


def examples(dialogues: Sequence[Dialogue], targets: Targets, max_turns: int | None) -> list[Example]:
    """`example_table` of dialogues in memory, as objects."""
    return to_examples(example_table(dialogue_table(dialogues), targets, max_turns))


def read_examples(path: Path, context: Context) -> list[Example]:
    """The examples of the dialogues in `path`, with the targets and contexts that the params ask for."""
    tables = (example_table(batch, context.targets, context.max_turns) for batch in read_batches(path))
    return [example for table in tables for example in to_examples(table)]


def to_examples(table: pa.Table) -> list[Example]:
    """The rows of `example_table` as objects."""
    return [Example(**{**row, "context": to_turns(row["context"])}) for row in table.to_pylist()]


def example_batches(
    path: Path, targets: Targets, max_turns: int | None, rows: int = ROWS, contexts: bool = True
) -> Iterator[pa.Table]:
    """`example_table` of a parquet file, in order of the examples' ids, a batch at a time; no batch is empty.

    Args:
        path: written by stage `prepare`, in order of the dialogues' ids.
        targets: as for `example_table`.
        max_turns: as for `example_table`.
        rows: dialogues that are read at a time.
        contexts: as for `example_table`.

    Raises:
        UserError: the rows are not in order of their ids.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    waiting, last = None, ""
    for batch in read_batches(path, rows, ALL_COLUMNS if contexts else COLUMNS):
        if batch["id"][0].as_py() < last or not is_sorted(batch["id"]):
            raise UserError(f"{path}: the rows are not in order of their ids: run `dvc repro -f prepare`")
        last = batch["id"][-1].as_py()
        table = example_table(batch, targets, max_turns, contexts)
        table = table if waiting is None else pa.concat_tables([waiting, table])
        table = table if is_sorted(table["id"]) else table.take(pc.sort_indices(table["id"]))
        # An example's id starts with its dialogue's, so later batches have no id before this batch's last dialogue. But
        # the example `a:3` comes after `a1:1`, which may be in the next batch.
        ready = pc.sum(pc.less(table["id"], last)).as_py() or 0
        if ready:
            yield table.slice(0, ready)
        waiting = table.slice(ready)
    if waiting is not None and len(waiting):
        yield waiting


def next_user(turns: pa.StructArray) -> Positions:
    """For each turn the position of the next user turn, itself included; `len(turns)` if there is none."""
    import pyarrow.compute as pc

    is_user = pc.equal(turns.field("role"), "user").to_numpy(zero_copy_only=False)
    positions = np.where(is_user, np.arange(len(turns)), len(turns))
    return np.minimum.accumulate(positions[::-1])[::-1]


def _system(turns: pa.StructArray, first: Positions) -> Positions:
    """The position of each dialogue's system turn, from that of its first turn; -1 where it has none."""
    import pyarrow.compute as pc

    is_system = pc.equal(turns.field("role"), "system").to_numpy(zero_copy_only=False)
    return np.where(is_system[first], first, -1)


def slices(
    values: pa.Array, start: Positions, end: Positions, kind: pa.DataType, before: Positions | None = None
) -> pa.ListArray:
    """`values[start[i]:end[i]]` for each i, as an Arrow list of type `kind`.

    Args:
        values: of all lists.
        start: (N,) positions.
        end: (N,) positions.
        kind: of the result.
        before: (N,) position of a value that stands before the slice, -1 for none; None: for all none.
    """
    import pyarrow as pa

    lengths = end - start
    ends = np.cumsum(lengths)
    positions = np.arange(lengths.sum()) + np.repeat(start - (ends - lengths), lengths)
    if before is not None and (has := before >= 0).any():
        positions = np.insert(positions, (ends - lengths)[has], before[has])
        ends = np.cumsum(lengths + has)
    offsets = pa.array(np.append(0, ends).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values.take(pa.array(positions)), type=kind)


def is_sorted(ids: pa.ChunkedArray) -> bool:
    """True if the ids are in ascending order."""
    import pyarrow.compute as pc

    return bool(pc.all(pc.less_equal(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py()) if len(ids) > 1 else True
