"""Sentences with labels of the MITI code (Welivita and Pu 2022), as their classifier's test output carries them.

One csv with the columns `Text` and `Ground truth`; what else is in it, a classifier's answers, is not read. The
sentences stand without their conversations and without splits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from attune.data.dialogue import normalise
from attune.runtime.errors import DataError
from attune.runtime.io import read_records

FILE = "boosting_mi_gold_test_output.csv"
COLUMNS = ("Text", "Ground truth")


@dataclass(frozen=True)
class Sentence:
    """A sentence, its label and its split."""

    text: str
    act: str
    split: str


def read(folder: Path) -> list[Sentence]:
    """The sentences in the order of the file; one without words is left out.

    Raises:
        DataError: the file is missing, is no csv with the columns, has no sentences, or one without a label.
    """
    path = folder / FILE
    table = read_records(path, COLUMNS, DataError, "behaviour.sentences names its folder")
    rows = [(line, row["Text"], row["Ground truth"].strip()) for line, row in table]
    found = [(line, text.strip(), act) for line, text, act in rows if normalise(text)]
    if not found:
        raise DataError(f"{path} holds no sentences")
    for line, text, act in found:
        if not act:
            raise DataError(f"{path}:{line}: {text!r} has no label")
    return [Sentence(text, act, split_of(text)) for _, text, act in found]


def split_of(text: str) -> str:
    """The split of a sentence: train (70 %), valid (10 %) or test (20 %).

    By a keyed hash of its normalised text: the same in every run, whatever else is in the file, and equal sentences
    stay together.
    """
    digest = hashlib.blake2b(normalise(text).encode(), key=b"miti", digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return "train" if share < 0.7 else "valid" if share < 0.8 else "test"
