"""Held-out text among what models learn from: copies of whole dialogues, and passages that only held-out ones have.

A *copy* of a dialogue has its text, whole or up to its last reply, whatever case, punctuation and spacing
(`normalise`), and may go on. A *passage* is a turn, or a turn and the reply to it, of `WORDS` words or more. One that
held-out dialogues have is evidence of a leak wherever a model learns it, unless train dialogues have its turns,
too: that is what people say to each other, and so are shorter texts ("Thank you.").

Thirteen words are the length of the n-grams by which Brown et al. 2020 (appendix C) tell test texts in training data.
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

from attune.data.dialogue import SPLITS, Dialogue, Turn, normalise, text_keys

if TYPE_CHECKING:
    import pyarrow as pa

WORDS = 13
# What copies of a split are counted as.
DROPPED = {"train": "train_overlap_with_held_out", "valid": "valid_overlap_with_test"}


def texts_of(turns: Sequence[Turn]) -> set[str]:
    """The texts that stand for a dialogue: all of it, and all up to the last reply; without words it has none."""
    return _whole(turns, _beginnings(turns))


def copied(turns: Sequence[Turn]) -> set[str]:
    """The texts whose dialogue these turns are a copy of: `texts_of`, and every long beginning that ends in a reply."""
    said = _beginnings(turns)
    replies = (text for turn, text in zip(turns, said, strict=True) if turn.role == "assistant")
    return _whole(turns, said) | {text for text in replies if _is_long(text)}


class Copies:
    """Which dialogues copy one of another split that counts for more: test before valid before train.

    Texts are compared by `text_keys`: of a held-out dialogue two are kept, 8 bytes each.
    """

    def __init__(self) -> None:
        self._own = {split: array("Q") for split in SPLITS[1:]}

    def add(self, dialogues: Iterable[Dialogue]) -> pa.Array:
        """Take note of dialogues; of each a list of the keys that `among` looks for, once all have been added."""
        import pyarrow as pa

        texts: list[list[str]] = []
        held_out: dict[str, list[str]] = {split: [] for split in self._own}
        for one in dialogues:
            texts.append(list(copied(one.turns)))
            if one.split != "train":
                held_out[one.split] += texts_of(one.turns)
        for split, some in held_out.items():
            self._own[split].extend(text_keys(some).tolist())
        offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, text_keys([text for some in texts for text in some]))

    def among(self, split: str, keys: pa.Array) -> npt.NDArray[np.bool_]:
        """Which dialogues of a split, by their keys from `add`, are copies."""
        above, values = self._above[split], keys.flatten().to_numpy()
        if not len(above):
            return np.zeros(len(keys), bool)
        hits = above[np.minimum(np.searchsorted(above, values), len(above) - 1)] == values
        rows = np.repeat(np.arange(len(keys)), np.diff(keys.offsets.to_numpy()))
        return np.bincount(rows[hits], minlength=len(keys)) > 0

    @cached_property
    def _above(self) -> dict[str, npt.NDArray[np.uint64]]:
        valid, test = (np.array(self._own[split], np.uint64) for split in ("valid", "test"))
        held_out = np.concatenate([valid, test])
        for keys in (held_out, test):
            keys.sort()
        return {"train": held_out, "valid": test, "test": test[:0]}


def without_copies(dialogues: Sequence[Dialogue]) -> tuple[list[Dialogue], Counter[str]]:
    """The dialogues that are not among the `Copies`.

    Returns:
        In their order, and how many were dropped: `train_overlap_with_held_out`, `valid_overlap_with_test`.
    """
    copies = Copies()
    keys = copies.add(dialogues)
    copy = {split: copies.among(split, keys) for split in SPLITS}
    kept = [one for i, one in enumerate(dialogues) if not copy[one.split][i]]
    lost = Counter(one.split for one in dialogues) - Counter(one.split for one in kept)
    return kept, Counter({DROPPED[split]: lost[split] for split in DROPPED})


class HeldOut:
    """The texts of held-out dialogues by which leaks are told, each with the id of the dialogue that has it.

    Args:
        dialogues: of all splits, as stage `prepare` wrote them; they are gone through twice, and train dialogues are
            not kept.
    """

    def __init__(self, dialogues: Iterable[Dialogue]) -> None:
        held_out = [one for one in dialogues if one.split != "train"]
        passages = {text: one.id for one in held_out for text in _passages(one.turns)}
        # Of what train dialogues say, that which is in a passage.
        asked = {turn for text in passages for turn in text.split("\n")}
        said: set[str] = set()
        for one in dialogues:
            if one.split == "train":
                said |= asked & {normalise(turn.text) for turn in one.turns}
        self.splits = {one.id: one.split for one in held_out}
        self._texts = {text: one.id for one in held_out for text in texts_of(one.turns) if _is_long(text)}
        self._passages = {text: one for text, one in passages.items() if not said.issuperset(text.split("\n"))}

    def copy_of(self, turns: Sequence[Turn]) -> str | None:
        """The id of a held-out dialogue that the turns are a copy of."""
        return next((self._texts[text] for text in sorted(copied(turns)) if text in self._texts), None)

    def find(self, turns: Sequence[Turn]) -> str | None:
        """The id of a held-out dialogue that the turns are a copy of, or have a passage of."""
        if copied_from := self.copy_of(turns):
            return copied_from
        return next((self._passages[text] for text in _passages(turns) if text in self._passages), None)


def sentences_of(dialogues: Iterable[Dialogue], sentences: Iterable[str]) -> dict[str, str]:
    """The sentences of `WORDS` words or more that stand within a turn of held-out dialogues and of no train dialogue.

    Args:
        dialogues: of all splits.
        sentences: that a model learns from.

    Returns:
        Of each that does, normalised, the id of the dialogue.
    """
    by_start: dict[tuple[str, ...], set[str]] = {}
    for text in {normalise(one) for one in sentences}:
        if _is_long(text):
            by_start.setdefault(tuple(text.split()[:WORDS]), set()).add(text)
    found: dict[str, str] = {}
    train: set[str] = set()
    for one in dialogues:
        for text in (normalise(turn.text) for turn in one.turns):
            words = text.split()
            for start in range(len(words) - WORDS + 1):
                for sentence in by_start.get(tuple(words[start : start + WORDS]), ()):
                    if f" {sentence} " in f" {text} ":
                        train |= {sentence} if one.split == "train" else set()
                        found |= {} if one.split == "train" else {sentence: one.id}
    return {sentence: one for sentence, one in found.items() if sentence not in train}


def _whole(turns: Sequence[Turn], said: Sequence[str]) -> set[str]:
    replies = [text for turn, text in zip(turns, said, strict=True) if turn.role == "assistant"]
    return {text for text in (*said[-1:], *replies[-1:]) if text}


def _beginnings(turns: Sequence[Turn]) -> list[str]:
    """Of each turn the text up to its end."""
    return list(accumulate((normalise(turn.text) for turn in turns), lambda one, other: f"{one} {other}".strip()))


def _passages(turns: Sequence[Turn]) -> list[str]:
    """Long turns, and long exchanges; a line end keeps one from looking like the other."""
    texts = [normalise(turn.text) for turn in turns]
    exchanges = [f"{one}\n{other}" for one, other in pairwise(texts)]
    return [text for text in (*texts, *exchanges) if _is_long(text)]


def _is_long(text: str) -> bool:
    return len(text.split(maxsplit=WORDS - 1)) == WORDS
