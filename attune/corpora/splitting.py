"""Dialogues on their way to the splits: on the disk until all have been seen, since what is kept hangs on all of them.

In memory are a run of `Runs`, of a held-out dialogue the keys of `Copies`, and 8 bytes for each train dialogue of a
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
from attune.corpora.splits import place
from attune.data.dialogue import SPLITS, Dialogue, dialogue_schema, dialogue_table
from attune.runtime.arrow_stream import table_writer
from attune.runtime.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Places = npt.NDArray[np.uint64]


class Store:
    """The usable dialogues of a corpus, or of a mixture.

    Args:
        work: a folder for them.
        weights: of a mixture's corpora; none: all dialogues are taken.
        seed: of the choice of a mixture's dialogues.
    """

    def __init__(self, work: Path, weights: Mapping[str, float], seed: int) -> None:
        self._weights, self._seed, self._copies = weights, seed, Copies()
        self._runs = {split: Runs(work / split) for split in SPLITS}

    def add(self, dialogues: Sequence[Dialogue]) -> None:
        """Put dialogues down."""
        import pyarrow as pa
        import pyarrow.compute as pc

        places = [mixture_place(one.id, self._seed) if self._weights else 0 for one in dialogues]
        table = dialogue_table(dialogues).append_column("keys", self._copies.add(dialogues))
        table = table.append_column("place", pa.array(places, pa.uint64()))
        for split, runs in self._runs.items():
            runs.add(table.filter(pc.equal(table["split"], split)))

    def write(self, folder: Path, dropped: Counter[str]) -> Counter[str]:
        """Write what is kept, a parquet file a split, in order of the ids, and give the counts of `count`.

        Args:
            folder: of the files.
            dropped: grows by copies across splits, and by what a mixture's weights leave out.

        Raises:
            DataError: as `last_places`.
        """
        dropped.update(dict.fromkeys(DROPPED.values(), 0))
        last = last_places(self._places(), self._weights) if self._weights else None
        counts: Counter[str] = Counter()
        for split, runs in self._runs.items():
            with table_writer(folder / f"{split}.parquet", dialogue_schema()) as append:
                for table in runs.in_order():
                    kept = self._without_copies(table, split, dropped)
                    if last is not None and split == "train":
                        kept = _taken(kept, last, dropped)
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

    def _places(self) -> dict[str, Places]:
        """The places of the train dialogues that are no copies, by corpus."""
        found: dict[str, list[Places]] = defaultdict(list)
        for table in self._runs["train"].in_any_order():
            kept = self._without_copies(table, "train", Counter())
            names, places = np.array(kept["corpus"].to_pylist(), object), kept["place"].to_numpy()
            for name in set(names):
                found[name].append(places[names == name])
        return {name: np.concatenate(some) for name, some in found.items()}


def mixture_place(dialogue: str, seed: int) -> int:
    """Where a dialogue stands among those of its corpus, of which a mixture takes the first ones."""
    return place(f"{seed}:{dialogue}")


def last_places(places: Mapping[str, Places], weights: Mapping[str, float]) -> dict[str, int]:
    """What of a mixture is taken, so that the train split has the corpora in the proportion of their weights.

    It is the largest part without a dialogue twice: the corpus that is smallest for its weight is there whole; of
    another one those with the lowest places, which are hashes of (seed, id), whatever their order.

    Args:
        places: of the train dialogues of each corpus.
        weights: of each corpus, > 0; only their proportion counts.

    Returns:
        Of each corpus the place of the last dialogue that is taken; -1: none is.

    Raises:
        DataError: a corpus has no train dialogue.
    """
    # As decimals, since 0.3 is not three times 0.1 in floating point.
    shares = {name: Fraction(str(weight)) for name, weight in weights.items()}
    if without := [name for name in shares if not len(places.get(name, ()))]:
        raise DataError(f"corpus.mix: {', '.join(without)} has no train dialogue to mix")
    unit = min(len(places[name]) / share for name, share in shares.items())
    taken = {name: math.floor(share * unit) for name, share in shares.items()}
    return {name: int(np.partition(places[name], n - 1)[n - 1]) if n else -1 for name, n in taken.items()}


def _taken(table: pa.Table, last: Mapping[str, int], dropped: Counter[str]) -> pa.Table:
    import pyarrow as pa

    corpora, places = table["corpus"].to_pylist(), table["place"].to_pylist()
    taken = [own <= last[name] for name, own in zip(corpora, places, strict=True)]
    dropped["train_beyond_weight"] += len(taken) - sum(taken)
    return table.filter(pa.array(taken, pa.bool_()))


def count(dialogues: pa.Table, split: str) -> Counter[str]:
    """Of dialogues of a split: `<split>_dialogues`, `<split>_turns`, `<split>_words` of the turns,
    `<corpus>_<split>_dialogues`, and of train dialogues `train_label_<label>`."""
    texts = dialogues["turns"].combine_chunks().flatten().field("text").to_pylist()
    counts = Counter(f"{name}_{split}_dialogues" for name in dialogues["corpus"].to_pylist())
    if split == "train":
        counts.update(f"train_label_{label}" for label in dialogues["label"].to_pylist())
    counts[f"{split}_dialogues"] += len(dialogues)
    counts[f"{split}_turns"] += len(texts)
    counts[f"{split}_words"] += sum(len(text.split()) for text in texts)
    return counts
