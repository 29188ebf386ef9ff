"""Random draws that depend on a key alone, not on order, subset or number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from attune.data.dialogue import Example


def uniform(n: int, *key: object) -> int:
    """A uniform draw from 0 to n - 1 that depends on `key` alone.

    128 bits of BLAKE2b modulo n: the bias is below n / 2**128.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big") % n


def random_part(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """The same random `limit` examples for every epoch, keyed by (seed, id); all where `limit` is None."""
    ordered = sorted(examples, key=lambda e: (uniform(2**64, seed, "part", e.id), e.id))
    return ordered[:limit]
