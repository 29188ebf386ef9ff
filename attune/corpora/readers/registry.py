"""Readers by name, and the dialogues that stage `prepare` has written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from attune.corpora.leakage import without_copies
from attune.data.dialogue import SPLITS, Dialogue, stream_dialogues

PACKAGE = "attune.corpora.readers"


def read_corpus(folder: Path, reader: str, **names: Any) -> tuple[list[Dialogue], Counter[str]]:
    """The dialogues of a corpus, and the number that its reader dropped, by `<split>_<reason>`.

    Args:
        folder: with the corpus's files.
        reader: a module of this package with a function `read(folder)`.
        names: the file, its columns, or the section `messages`, for readers that take them.

    Raises:
        DataError: a file is missing or does not fit its format; the message names file and line.
    """
    result: tuple[list[Dialogue], Counter[str]] = import_module(f"{PACKAGE}.{reader}").read(folder, **names)
    return result


def stream_corpus(folder: Path, reader: str, dropped: Counter[str], **names: Any) -> Iterator[Dialogue]:
    """`read_corpus`, one dialogue at a time if the reader has a function `stream(folder, dropped)`.

    Adds to `dropped`; other arguments and errors as for `read_corpus`.
    """
    module = import_module(f"{PACKAGE}.{reader}")
    if hasattr(module, "stream"):
        yield from module.stream(folder, dropped, **names)
        return
    dialogues, counts = read_corpus(folder, reader, **names)
    dropped += counts
    yield from dialogues


class Prepared:
    """The dialogues of all splits that stage `prepare` wrote to a folder; they are read again in each iteration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[Dialogue]:
        for split in SPLITS:
            yield from stream_dialogues(self.folder / f"{split}.parquet")


def read_every_split(folder: Path, reader: str | None) -> list[Dialogue]:
    """The dialogues of all splits, without copies across splits.

    Args:
        folder: of a corpus, or of stage `prepare` if `reader` is None.
        reader: of the corpus.

    Raises:
        DataError: as `read_corpus`.
    """
    if reader is None:
        return list(Prepared(folder))
    return without_copies(read_corpus(folder, reader)[0])[0]
