"""Sentences with labels of the MITI code, from the test output of a classifier (Welivita and Pu 2022).

A csv file with the columns `Text` and `Ground truth`; the classifier's answers are not read. The sentences have no
context and no split.
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


def read_sentences(folder: Path) -> list[Sentence]:
    """The sentences in file order, without those that have no words.

    Raises:
        DataError: the file or a column is missing, there are no sentences, or one has no label.
    """
    path = folder / FILE
    table = read_records(path, COLUMNS, DataError, "behaviour.sentences names its folder")
    rows = [(line, row["Text"], row["Ground truth"].strip()) for line, row in table]
    sentences = [(line, text.strip(), act) for line, text, act in rows if normalise(text)]
    if not sentences:
        raise DataError(f"{path} holds no sentences")
    for line, text, act in sentences:
        if not act:
            raise DataError(f"{path}:{line}: {text!r} has no label")
    return [Sentence(text, act, split_of(text)) for _, text, act in sentences]


def split_of(text: str) -> str:
    """The split of a sentence: train (70 %), valid (10 %) or test (20 %).

    It depends on a keyed hash of the normalised text alone, so equal sentences are in one split.
    """
    digest = hashlib.blake2b(normalise(text).encode(), key=b"miti", digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return "train" if share < 0.7 else "valid" if share < 0.8 else "test"
