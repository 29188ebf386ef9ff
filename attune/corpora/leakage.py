"""Leakage: held-out text in training data, as copies of whole dialogues or as passages of held-out dialogues.

A *copy* of a dialogue starts with its normalised text, whole or up to its last reply. A *passage* is a turn, or a turn
and the reply to it, with at least `WORDS` words. A passage of a held-out dialogue is a leak in any training data,
unless train dialogues have its turns as well: then it is a common phrase, as are shorter texts ("Thank you.").

Thirteen words is the length of the n-grams by which Brown et al. 2020 (appendix C) find test texts in training data.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attune.data.dialogue import SPLITS, Dialogue, Turn, normalise, split_system, text_keys

if TYPE_CHECKING:
    import pyarrow as pa

WORDS = 13
# The counters of the copies that are dropped from a split.
DROPPED = {"train": "train_overlap_with_held_out", "valid": "valid_overlap_with_test"}


def texts_of(turns: Sequence[Turn]) -> set[str]:
    """The texts that identify a dialogue: the whole, and up to the last reply; none if it has no words."""
    return _whole(turns, _prefixes(turns))


def copied(turns: Sequence[Turn]) -> set[str]:
    """If one of these texts identifies a dialogue, the turns are a copy of it: `texts_of`, and long prefixes that end
    in a reply."""
    prefixes = _prefixes(turns)
    replies = (text for turn, text in zip(turns, prefixes, strict=True) if turn.role == "assistant")
    return _whole(turns, prefixes) | {text for text in replies if _is_long(text)}


class Copies:
    """Dialogues of a split that copy one of a split that takes precedence: test, then valid, then train.

    Texts are compared by `text_keys`; two keys of 8 bytes are kept for each held-out dialogue.
    """

    def __init__(self) -> None:
        self._keys = {split: array("Q") for split in SPLITS[1:]}

    def add(self, dialogues: Iterable[Dialogue]) -> pa.Array:
        """Add dialogues, and return for each of them the list of keys that `among` needs once all have been added."""
        import pyarrow as pa

        texts: list[list[str]] = []
        held_out: dict[str, list[str]] = {split: [] for split in self._keys}
        for dialogue in dialogues:
            texts.append(list(copied(dialogue.turns)))
            if dialogue.split != "train":
                held_out[dialogue.split] += texts_of(dialogue.turns)
        for split, some in held_out.items():
            self._keys[split].extend(text_keys(some).tolist())
        offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, text_keys([text for some in texts for text in some]))

    def among(self, split: str, keys: pa.Array) -> npt.NDArray[np.bool_]:
        """Which dialogues of a split are copies, (N,), from their keys by `add`."""
        wanted, values = self._precedence[split], keys.flatten().to_numpy()
        if not len(wanted):
            return np.zeros(len(keys), bool)
        hits = wanted[np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)] == values
        rows = np.repeat(np.arange(len(keys)), np.diff(keys.offsets.to_numpy()))
        return np.bincount(rows[hits], minlength=len(keys)) > 0

    @cached_property
    def _precedence(self) -> dict[str, npt.NDArray[np.uint64]]:
        """For each split the sorted keys of the splits that take precedence over it."""
        valid, test = (np.array(self._keys[split], np.uint64) for split in ("valid", "test"))
        held_out = np.concatenate([valid, test])
        for keys in (held_out, test):
            keys.sort()
        return {"train": held_out, "valid": test, "test": test[:0]}


def without_copies(dialogues: Sequence[Dialogue]) -> tuple[list[Dialogue], Counter[str]]:
    """The dialogues without `Copies`.

    Returns:
        The others in their order, and the number of copies by split (`DROPPED`).
    """
    copies = Copies()
    keys = copies.add(dialogues)
    copy = {split: copies.among(split, keys) for split in SPLITS}
    kept = [dialogue for i, dialogue in enumerate(dialogues) if not copy[dialogue.split][i]]
    lost = Counter(d.split for d in dialogues) - Counter(d.split for d in kept)
    return kept, Counter({DROPPED[split]: lost[split] for split in DROPPED})


class HeldOut:
    """The texts of held-out dialogues that would be leaks, each with the id of its dialogue.

    Args:
        dialogues: of all splits; they are iterated twice, and train dialogues are not kept in memory.
    """

    def __init__(self, dialogues: Iterable[Dialogue]) -> None:
        held_out = [dialogue for dialogue in dialogues if dialogue.split != "train"]
        passages = {text: dialogue.id for dialogue in held_out for text in _passages(dialogue.turns)}
        turns = {turn for text in passages for turn in text.split("\n")}
        in_train: set[str] = set()
        for dialogue in dialogues:
            if dialogue.split == "train":
                in_train |= turns & {normalise(turn.text) for turn in dialogue.turns}
        self.splits = {dialogue.id: dialogue.split for dialogue in held_out}
        self._texts = {text: d.id for d in held_out for text in texts_of(d.turns) if _is_long(text)}
        self._passages = {text: id for text, id in passages.items() if not in_train.issuperset(text.split("\n"))}

    def copy_of(self, turns: Sequence[Turn]) -> str | None:
        """The id of a held-out dialogue that the turns are a copy of, or None."""
        return next((self._texts[text] for text in sorted(copied(turns)) if text in self._texts), None)

    def find(self, turns: Sequence[Turn]) -> str | None:
        """The id of a held-out dialogue that the turns are a copy of, or share a passage with, or None."""
        if copied_from := self.copy_of(turns):
            return copied_from
        return next((self._passages[text] for text in _passages(turns) if text in self._passages), None)


def sentences_of(dialogues: Iterable[Dialogue], sentences: Iterable[str]) -> dict[str, str]:
    """The sentences of at least `WORDS` words that are part of a turn of a held-out and of no train dialogue.

    Args:
        dialogues: of all splits.
        sentences: that a model is trained on.

    Returns:
        Normalised sentence to id of a held-out dialogue.
    """
    by_start: dict[tuple[str, ...], set[str]] = {}
    for text in {normalise(sentence) for sentence in sentences}:
        if _is_long(text):
            by_start.setdefault(tuple(text.split()[:WORDS]), set()).add(text)
    held_out: dict[str, str] = {}
    train: set[str] = set()
    for dialogue in dialogues:
        for text in (normalise(turn.text) for turn in dialogue.turns):
            words = text.split()
            for start in range(len(words) - WORDS + 1):
                for sentence in by_start.get(tuple(words[start : start + WORDS]), ()):
                    if f" {sentence} " in f" {text} ":
                        train |= {sentence} if dialogue.split == "train" else set()
                        held_out |= {} if dialogue.split == "train" else {sentence: dialogue.id}
    return {sentence: id for sentence, id in held_out.items() if sentence not in train}


def _whole(turns: Sequence[Turn], prefixes: Sequence[str]) -> set[str]:
    replies = [text for turn, text in zip(turns, prefixes, strict=True) if turn.role == "assistant"]
    return {text for text in (*prefixes[-1:], *replies[-1:]) if text}


def _prefixes(turns: Sequence[Turn]) -> list[str]:
    """For each turn the normalised text up to its end, without that of the system turn, which many dialogues share."""
    texts = ("" if turn.role == "system" else normalise(turn.text) for turn in turns)
    return list(accumulate(texts, lambda text, turn: f"{text} {turn}".strip()))


def _passages(turns: Sequence[Turn]) -> list[str]:
    """The long turns, and the long pairs of consecutive turns, which have a line break between them."""
    texts = [normalise(turn.text) for turn in split_system(turns)[1]]
    exchanges = [f"{turn}\n{reply}" for turn, reply in pairwise(texts)]
    return [text for text in (*texts, *exchanges) if _is_long(text)]


def _is_long(text: str) -> bool:
    return len(text.split(maxsplit=WORDS - 1)) == WORDS
