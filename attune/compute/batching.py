"""Batches of rows of similar length, longest first: little padding, and a lack of memory shows in the first batch.

Batches in another order, and why: `mixed_batches` of the classifiers shuffles pools of rows, since an epoch of training
must not go from long to short; `by_length` of SFT cuts an effective batch where the padding is least, for a fixed
number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


def batches_by_tokens(lengths: Sequence[int] | Mapping[int, int], max_tokens: int) -> Iterator[list[int]]:
    """Batches of row indices, as many rows as have room in `max_tokens` after padding.

    Args:
        lengths: tokens of each row, or of some rows by their indices.
        max_tokens: bound of rows x longest row; a row that alone is longer gets a batch of its own.
    """
    order = _longest_first(lengths)
    while order:
        size = max(1, max_tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def batches_by_count(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Batches of `size` row indices; the last one may be smaller."""
    order = _longest_first(lengths)
    yield from (order[i : i + size] for i in range(0, len(order), size))


def _longest_first(lengths: Sequence[int] | Mapping[int, int]) -> list[int]:
    """Indices by falling length; rows of equal length keep their order, so that batches are reproducible."""
    rows = lengths if isinstance(lengths, Mapping) else range(len(lengths))
    return sorted(rows, key=lambda i: (-lengths[i], i))
