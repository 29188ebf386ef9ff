"""The draws of `opposite_emotion` for many examples at once: the same numbers, without an object an example."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.preferences.opposite_emotion import ATTEMPTS

if TYPE_CHECKING:
    import pyarrow as pa

Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


def id_bytes(ids: pa.ChunkedArray) -> list[bytes]:
    """The ids as they are hashed."""
    import pyarrow as pa

    found: list[bytes] = ids.cast(pa.binary()).to_pylist()
    return found


def uniforms(n: int, ids: Sequence[bytes], before: Sequence[object], after: Sequence[object] = ()) -> Keys:
    """`uniform(n, *before, id, *after)` of each id; n is below 2**32, or 2**64."""
    begin = "".join(f"{part}\x1f" for part in before).encode()
    end = "".join(f"\x1f{part}" for part in after).encode()
    digests = b"".join([hashlib.blake2b(begin + one + end, digest_size=16).digest() for one in ids])
    high, low = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2).T
    if n == 2**64:
        return low
    # No product of two numbers below 2**32 leaves 64 bits.
    size = np.uint64(n)
    return (high % size * np.uint64(2**64 % n) + low % size) % size


def draw_all(ids: Sequence[bytes], chosen: Keys, group: Keys, seed: int, epoch: int) -> Places:
    """Of each example the place in its group of what `draw` gives; -1 where that is None.

    Args:
        ids: of the examples.
        chosen: `text_keys` of their targets.
        group: `text_keys` of the targets that are drawn from, in order of their examples' ids; not empty.
        seed: of the run.
        epoch: as `build_pairs`.
    """
    found = np.full(len(ids), -1)
    left = np.arange(len(ids))
    for attempt in range(ATTEMPTS):
        place = uniforms(len(group), [ids[i] for i in left.tolist()] if attempt else ids, (seed, epoch), (attempt,))
        differs = group[place] != chosen[left]
        found[left[differs]] = place[differs]
        left = left[~differs]
        if not len(left):
            break
    for key in np.unique(chosen[left]):
        some, others = left[chosen[left] == key], np.flatnonzero(group != key)
        if len(others):
            found[some] = others[uniforms(len(others), [ids[i] for i in some.tolist()], (seed, epoch), (ATTEMPTS,))]
    return found


class Lowest:
    """The `limit` lowest of many numbers, in memory no more than twice as many and those that are added."""

    def __init__(self, limit: int) -> None:
        self.limit, self.added = limit, 0
        self._kept: Keys = np.empty(0, np.uint64)

    def add(self, numbers: Keys) -> None:
        """Look at more of them."""
        self.added += len(numbers)
        self._kept = np.concatenate([self._kept, numbers])
        if len(self._kept) > 2 * self.limit:
            self._kept = np.partition(self._kept, self.limit - 1)[: self.limit]

    def last(self) -> int | None:
        """The greatest of the lowest; None where there are no more than `limit`."""
        return int(np.partition(self._kept, self.limit - 1)[self.limit - 1]) if self.added > self.limit else None
