"""Random draws that depend on a key alone, not on order, subset or number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Draws = npt.NDArray[np.uint64]
SEPARATOR = "\x1f"


class HasId(Protocol):
    """An example or a pair."""

    @property
    def id(self) -> str:
        """Of its dialogue or row."""


Item = TypeVar("Item", bound=HasId)


def uniform(n: int, *key: object) -> int:
    """A uniform draw from 0 to n - 1 that depends on `key` alone.

    128 bits of BLAKE2b modulo n: the bias is below n / 2**128.
    """
    digest = hashlib.blake2b(SEPARATOR.join(map(str, key)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big") % n


def uniforms(n: int, ids: Iterable[str], before: Sequence[object], after: Sequence[object] = ()) -> Draws:
    """`uniform(n, *before, id, *after)` for each id: the same numbers, several times faster.

    Args:
        n: below 2**32, or 2**64.
        ids: (N,) of examples.
        before: the parts of the key before the id.
        after: the parts after it.
    """
    start = "".join(f"{part}{SEPARATOR}" for part in before)
    end = "".join(f"{SEPARATOR}{part}" for part in after)
    digests = b"".join([hashlib.blake2b(f"{start}{id}{end}".encode(), digest_size=16).digest() for id in ids])
    high, low = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2).T
    if n == 2**64:
        return low
    # digest = high * 2**64 + low, reduced term by term: a product of two numbers below 2**32 fits into 64 bits.
    size = np.uint64(n)
    return (high % size * np.uint64(2**64 % n) + low % size) % size


def subset_keys(ids: Sequence[str], seed: int) -> Draws:
    """The sort key of each example for `random_subset`, (N,)."""
    return uniforms(2**64, ids, (seed, "part"))


def random_subset(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """The `limit` items with the lowest `subset_keys`, the same in every epoch; all if `limit` is None."""
    keys = subset_keys([item.id for item in items], seed).tolist()
    ordered = sorted(zip(keys, items, strict=True), key=lambda keyed: (keyed[0], keyed[1].id))
    return [item for _, item in ordered][:limit]


class BottomK:
    """The `limit` lowest of a stream of numbers; holds at most twice as many, and those being added.

    `random_subset` for examples that do not fit into memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.count = limit, 0
        self._lowest: Draws = np.empty(0, np.uint64)

    def add(self, numbers: Draws) -> None:
        """Add numbers to the stream."""
        self.count += len(numbers)
        self._lowest = np.concatenate([self._lowest, numbers])
        if len(self._lowest) > 2 * self.limit:
            self._lowest = np.partition(self._lowest, self.limit - 1)[: self.limit]

    def threshold(self) -> int | None:
        """The greatest of the lowest `limit` numbers; None if there are no more than `limit`."""
        return int(np.partition(self._lowest, self.limit - 1)[self.limit - 1]) if self.count > self.limit else None
