"""Sharing the scoring of replies between ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attune.runtime.distributed import gather_by_index, rank, world_size


def shared_by_ranks(count: int, score: Callable[[list[int]], Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
    """Columns of (N,) scores, of which each rank computes its part. All ranks must call it.

    Args:
        count: N >= 1.
        score: from the indices of some rows to their columns; values that JSON can hold. Every rank calls it once.
    """
    # With fewer rows than ranks, some ranks score the last row again.
    indices = list(range(count))[rank() :: world_size()] or [count - 1]
    columns = {}
    for name, column in score(indices).items():
        values = gather_by_index(dict(zip(indices, column, strict=True)))
        columns[name] = [values[index] for index in range(count)]
    return columns
