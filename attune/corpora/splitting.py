"""Writing dialogues to splits, out of core: all are stored on disk first, since every decision on what to keep
depends on all of them.

In memory are a run of `Runs`, the keys of `Copies` for each held-out dialogue, and 8 bytes for each train dialogue of a
mixture.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attune.corpora.external_sort import Runs
from attune.corpora.leakage import DROPPED, Copies
from attune.corpora.splits import text_hash
from attune.data.dialogue import SPLITS, Dialogue, dialogue_schema, dialogue_table
from attune.runtime.arrow_stream import table_writer
from attune.runtime.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

SortKeys = npt.NDArray[np.uint64]


class Store:
    """The usable dialogues of a corpus, or of a mixture.

    Args:
        work: scratch directory.
        weights: of the corpora of a mixture; empty: all dialogues are kept.
        seed: of the sample of a mixture.
    """

    def __init__(self, work: Path, weights: Mapping[str, float], seed: int) -> None:
        self._weights, self._seed, self._copies = weights, seed, Copies()
        self._runs = {split: Runs(work / split) for split in SPLITS}

    def add(self, dialogues: Sequence[Dialogue]) -> None:
        """Add dialogues."""
        import pyarrow as pa
        import pyarrow.compute as pc

        sort_keys = [mixture_key(d.id, self._seed) if self._weights else 0 for d in dialogues]
        table = dialogue_table(dialogues).append_column("keys", self._copies.add(dialogues))
        table = table.append_column("sort_key", pa.array(sort_keys, pa.uint64()))
        for split, runs in self._runs.items():
            runs.add(table.filter(pc.equal(table["split"], split)))

    def write(self, folder: Path, dropped: Counter[str]) -> Counter[str]:
        """Write the dialogues that are kept, a parquet file for each split, in order of the ids.

        Args:
            folder: of the files.
            dropped: adds the copies across splits, and the dialogues beyond a mixture's weights.

        Returns:
            The counts of `count`.

        Raises:
            DataError: as `mixture_thresholds`.
        """
        dropped.update(dict.fromkeys(DROPPED.values(), 0))
        thresholds = mixture_thresholds(self._sort_keys(), self._weights) if self._weights else None
        counts: Counter[str] = Counter()
        for split, runs in self._runs.items():
            with table_writer(folder / f"{split}.parquet", dialogue_schema()) as append:
                for table in runs.in_order():
                    kept = self._without_copies(table, split, dropped)
                    if thresholds is not None and split == "train":
                        kept = _sampled(kept, thresholds, dropped)
                    counts.update(count(kept, split))
                    append(kept.select(dialogue_schema().names))
        return counts

    def _without_copies(self, table: pa.Table, split: str, dropped: Counter[str]) -> pa.Table:
        import pyarrow as pa

        copies = self._copies.among(split, table["keys"].combine_chunks())
        if not copies.any():
            return table
        dropped[DROPPED[split]] += int(copies.sum())
        return table.filter(pa.array(~copies))

    def _sort_keys(self) -> dict[str, SortKeys]:
        """The sort keys of the train dialogues that are no copies, by corpus."""
        by_corpus: dict[str, list[SortKeys]] = defaultdict(list)
        for table in self._runs["train"].in_any_order():
            kept = self._without_copies(table, "train", Counter())
            names, keys = np.array(kept["corpus"].to_pylist(), object), kept["sort_key"].to_numpy()
            for name in set(names):
                by_corpus[name].append(keys[names == name])
        return {name: np.concatenate(some) for name, some in by_corpus.items()}


def mixture_key(dialogue: str, seed: int) -> int:
    """The sort key of a dialogue in its corpus, a hash of (seed, id); a mixture keeps the lowest ones."""
    return text_hash(f"{seed}:{dialogue}")


def mixture_thresholds(keys: Mapping[str, SortKeys], weights: Mapping[str, float]) -> dict[str, int]:
    """The greatest sort key of each corpus in the largest train split with corpora in proportion to their weights.

    The corpus that is smallest for its weight is kept whole, and of the others the dialogues with the lowest sort keys.
    No dialogue is repeated.

    Args:
        keys: `mixture_key` of the train dialogues of each corpus.
        weights: of each corpus, > 0; only their ratios count.

    Returns:
        For each corpus the greatest key that is kept; -1 for none.

    Raises:
        DataError: a corpus has no train dialogue.
    """
    # Decimal fractions: in floating point 0.3 is not three times 0.1.
    shares = {name: Fraction(str(weight)) for name, weight in weights.items()}
    if without := [name for name in shares if not len(keys.get(name, ()))]:
        raise DataError(f"corpus.mix: {', '.join(without)} has no train dialogue to mix")
    unit = min(len(keys[name]) / share for name, share in shares.items())
    counts = {name: math.floor(share * unit) for name, share in shares.items()}
    return {name: int(np.partition(keys[name], n - 1)[n - 1]) if n else -1 for name, n in counts.items()}


def _sampled(table: pa.Table, thresholds: Mapping[str, int], dropped: Counter[str]) -> pa.Table:
    import pyarrow as pa

    corpora, keys = table["corpus"].to_pylist(), table["sort_key"].to_pylist()
    kept = [key <= thresholds[name] for name, key in zip(corpora, keys, strict=True)]
    dropped["train_beyond_weight"] += len(kept) - sum(kept)
    return table.filter(pa.array(kept, pa.bool_()))


def count(dialogues: pa.Table, split: str) -> Counter[str]:
    """Counts of the dialogues of a split: `<split>_dialogues`, `<split>_turns`, `<split>_words`,
    `<corpus>_<split>_dialogues`, and `<split>_label_<label>`."""
    texts = dialogues["turns"].combine_chunks().flatten().field("text").to_pylist()
    counts = Counter(f"{name}_{split}_dialogues" for name in dialogues["corpus"].to_pylist())
    counts.update(f"{split}_label_{label}" for label in dialogues["label"].to_pylist() if label)
    counts[f"{split}_dialogues"] += len(dialogues)
    counts[f"{split}_turns"] += len(texts)
    counts[f"{split}_words"] += sum(len(text.split()) for text in texts)
    return counts
