"""The examples of dialogues as Arrow tables, a batch at a time: what `attune.data.dialogue.examples` makes one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attune.data.dialogue import Targets
from attune.runtime.arrow_stream import ROWS, read_batches
from attune.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


WITHOUT = ("id", "label", "turns.list.element.role", "turns.list.element.text")
WITH_CONTEXT = ("id", "label", "turns")


def example_batches(
    path: Path, targets: Targets, max_context_turns: int | None, rows: int = ROWS, contexts: bool = True
) -> Iterator[pa.Table]:
    """The examples of the dialogues in a parquet file, in order of their ids.

    Args:
        path: of stage `prepare`, whose rows are in order of the dialogues' ids.
        targets: as `attune.data.dialogue.examples`.
        max_context_turns: as there.
        rows: of dialogues that are read at a time.
        contexts: whether they are wanted; without them half of the bytes are decoded.

    Yields:
        Tables with the columns id, label, context (a list of turns) and target; none of them is empty.

    Raises:
        UserError: the rows are in another order.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    waiting, last = None, ""
    for batch in read_batches(path, rows, WITH_CONTEXT if contexts else WITHOUT):
        if batch["id"][0].as_py() < last or not _in_order(batch["id"]):
            raise UserError(f"{path}: the rows are not in order of their ids: run `dvc repro -f prepare`")
        last = batch["id"][-1].as_py()
        found = examples_of(batch, targets, max_context_turns, contexts)
        known = found if waiting is None else pa.concat_tables([waiting, found])
        known = known if _in_order(known["id"]) else known.take(pc.sort_indices(known["id"]))
        # An example's id begins with its dialogue's, so no later one comes before this batch's last dialogue; but the
        # example `a:3` comes behind `a1:1`, which may be in the next batch.
        ready = pc.sum(pc.less(known["id"], last)).as_py() or 0
        if ready:
            yield known.slice(0, ready)
        waiting = known.slice(ready)
    if waiting is not None and len(waiting):
        yield waiting


def examples_of(
    dialogues: pa.Table, targets: Targets, max_context_turns: int | None, contexts: bool = True
) -> pa.Table:
    """The examples of a table of dialogues, in its order; arguments and columns as those of `example_batches`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    turns = dialogues["turns"].combine_chunks()
    starts, spoken = turns.offsets.to_numpy().astype(np.int64), turns.values
    row = np.repeat(np.arange(len(turns)), np.diff(starts)) if len(turns) else np.empty(0, np.int64)
    shift = starts[0] if len(turns) else 0
    position = np.arange(shift, shift + len(row))
    answer = pc.equal(spoken.field("role"), "assistant").to_numpy(zero_copy_only=False)[position]
    target = position[answer & (position > starts[row])]
    of = row[target - shift]
    if targets == "last" and len(of):
        final = np.append(of[1:] != of[:-1], True)
        target, of = target[final], of[final]
    ids = dialogues["id"].combine_chunks().take(pa.array(of))
    if targets == "every":
        ids = pc.binary_join_element_wise(ids, pa.array(target - starts[of]).cast(pa.string()), ":")
    found = {
        "id": ids,
        "label": dialogues["label"].combine_chunks().take(pa.array(of)),
        "target": spoken.field("text").take(pa.array(target)),
    }
    if contexts:
        begin = starts[of] if max_context_turns is None else np.maximum(starts[of], target - max_context_turns)
        user = pc.equal(spoken.field("role"), "user").to_numpy(zero_copy_only=False)
        found["context"] = _ranges(spoken, np.minimum(_next(user)[begin], target), target, turns.type)
    return pa.table(found)


def _next(user: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Of each place the next one, itself included, that is a user's; behind the last one the end."""
    import numpy as np

    places = np.where(user, np.arange(len(user)), len(user))
    return np.minimum.accumulate(places[::-1])[::-1]


def _ranges(
    values: pa.Array, begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64], kind: pa.DataType
) -> pa.ListArray:
    """Lists of the values from `begin` to before `end`."""
    import numpy as np
    import pyarrow as pa

    lengths = end - begin
    ends = np.cumsum(lengths)
    places = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths) + np.repeat(begin, lengths)
    offsets = pa.array(np.append(0, ends).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values.take(pa.array(places)), type=kind)


def _in_order(ids: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(pc.less_equal(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py()) if len(ids) > 1 else True
