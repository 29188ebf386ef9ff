"""TODO."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from attune.compute.process import free_memory, out_of_memory
from attune.runtime.distributed import rank, world_size
from attune.runtime.errors import ModelError


def batches_by_tokens(lengths: Sequence[int] | Mapping[int, int], most: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: little padding, and a lack of memory shows at once.

    Args:
        lengths: tokens of each row, or of some rows by their indices.
        most: rows x longest row of a batch; a row that is longer has a batch to itself.
    """
    rows = lengths if isinstance(lengths, Mapping) else range(len(lengths))
    order = sorted(rows, key=lambda i: (-lengths[i], i))
    while order:
        size = max(1, most // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def within_memory(lengths: Sequence[int], most: int, work: Callable[[list[int]], None]) -> None:
    """Have `work` done for the batches of `batches_by_tokens`, of half the tokens from where one does not fit.

    Several ranks do the batches of one process in turn.

    Args:
        lengths: tokens of each row.
        most: as `hardware.batch_tokens`.
        work: of a batch of indices; done again where memory ran out in it.

    Raises:
        ModelError: one row by itself does not fit.
    """
    own = list(batches_by_tokens(lengths, most))[rank() :: world_size()]
    left, batches = {row for batch in own for row in batch}, iter(own)
    while left:
        batch = next(batches)
        try:
            work(batch)
        except Exception as error:
            if not out_of_memory(error):
                raise
        else:
            left -= set(batch)
            continue
        free_memory()
        longest = max(lengths[row] for row in batch)
        if len(batch) == 1:
            raise ModelError(
                f"a row of {longest} tokens does not fit into memory by itself: lower generate.max_length, or "
                "pairs.max_new_tokens and dpo.max_length, where the model is sampled for pairs"
            )
        most = longest * (len(batch) // 2)
        print(f"out of memory: going on with batches of {most} tokens (hardware.batch_tokens)", file=sys.stderr)
        batches = batches_by_tokens({row: lengths[row] for row in left}, most)
