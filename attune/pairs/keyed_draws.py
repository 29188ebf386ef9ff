"""The draws of `opposite_emotion` for many examples at once: the same numbers, without an object an example."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attune.data.dialogue import FOLDED, normalise, text_keys
from attune.pairs.opposite_emotion import ATTEMPTS

if TYPE_CHECKING:
    import pyarrow as pa

Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
SPACE = ord(" ")
# As `normalise` folds the bytes of a text, and whether `str.split` parts words at one.
FOLD = np.frombuffer(FOLDED, np.uint8)
BETWEEN_WORDS = np.array([i < 128 and chr(i).isspace() for i in range(256)])


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


class BottomK:
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


def keys_and_words(texts: pa.ChunkedArray) -> tuple[Keys, Places]:
    """`text_keys` of the texts as `normalise` gives them, and how many words each has."""
    import pyarrow.compute as pc

    ascii_only = pc.string_is_ascii(texts).to_numpy()
    keys, words = np.empty(len(texts), np.uint64), np.empty(len(texts), np.int64)
    keys[ascii_only], words[ascii_only] = _of_ascii(texts.filter(ascii_only))
    others = texts.filter(~ascii_only).to_pylist()
    keys[~ascii_only] = text_keys([normalise(text) for text in others])
    words[~ascii_only] = [len(text.split()) for text in others]
    return keys, words


def _of_ascii(texts: pa.ChunkedArray) -> tuple[Keys, Places]:
    """As `keys_and_words`, byte by byte instead of text by text."""
    data, offsets = _bytes_of(texts)
    folded = FOLD[data]
    apart = folded == SPACE
    # Of the spaces the first one behind a word.
    kept = ~apart | np.append(False, ~apart[:-1])
    begins = offsets[:-1][np.diff(offsets) > 0]
    kept[begins] = ~apart[begins]
    folded, offsets_kept = folded[kept], _counted(kept, offsets)
    # And not at the end of a text.
    ends = offsets_kept[1:][np.diff(offsets_kept) > 0] - 1
    last = np.zeros(len(folded), bool)
    last[ends[folded[ends] == SPACE]] = True
    keys = text_keys(_texts_of(folded[~last], _counted(~last, offsets_kept)))
    blank = BETWEEN_WORDS[data]
    starts = ~blank & np.append(True, blank[:-1])
    starts[begins] = ~blank[begins]
    return keys, np.diff(_counted(starts, offsets))


def _counted(chosen: npt.NDArray[np.bool_], offsets: Places) -> Places:
    """How many of the bytes are chosen before each offset."""
    return np.append(0, np.cumsum(chosen))[offsets]


def _bytes_of(texts: pa.ChunkedArray) -> tuple[Bytes, Places]:
    """The bytes of all texts behind each other, and where each begins; at last, where the last ends."""
    import pyarrow as pa

    array = texts.combine_chunks().cast(pa.large_string())
    _, starts, data = array.buffers()
    offsets = np.frombuffer(starts, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def _texts_of(data: Bytes, offsets: Places) -> Any:
    import pyarrow as pa

    found = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    return found.to_numpy(zero_copy_only=False)
