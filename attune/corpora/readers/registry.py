"""Dialogues by the name of their reader, or as stage `prepare` has written them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from attune.corpora.leakage import without_copies
from attune.data.dialogue import SPLITS, Dialogue, stream_dialogues


def read_corpus(folder: Path, reader: str, **names: Any) -> tuple[list[Dialogue], Counter[str]]:
    """The dialogues of a corpus, and how many its reader dropped by `<split>_<reason>`.

    Args:
        folder: with the corpus's files.
        reader: a module of this package with a function `read(folder)`.
        names: the file and its columns, for readers of files that may have any.

    Raises:
        DataError: a file is missing or does not fit its format; the message names file and line.
    """
    found: tuple[list[Dialogue], Counter[str]] = import_module(f"attune.corpora.readers.{reader}").read(folder, **names)
    return found


def stream_corpus(folder: Path, reader: str, dropped: Counter[str], **names: Any) -> Iterator[Dialogue]:
    """The dialogues of a corpus, one by one where its reader has a function `stream(folder, dropped)`.

    `dropped` grows by what the reader drops; arguments and errors otherwise as `read_corpus`.
    """
    module = import_module(f"attune.corpora.readers.{reader}")
    if hasattr(module, "stream"):
        yield from module.stream(folder, dropped)
        return
    found, lost = read_corpus(folder, reader, **names)
    dropped += lost
    yield from found


class Prepared:
    """The dialogues of all splits that stage `prepare` wrote to a folder, read anew each time they are gone through."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[Dialogue]:
        for split in SPLITS:
            yield from stream_dialogues(self.folder / f"{split}.parquet")


def read_every_split(folder: Path, reader: str | None) -> list[Dialogue]:
    """The dialogues of all splits: of a corpus, or, without a reader, those that stage `prepare` wrote to `folder`.

    Those of a corpus that are copies across its splits are left out, as `prepare` does.

    Raises:
        DataError: as `read_corpus`.
    """
    if reader is None:
        return list(Prepared(folder))
    return without_copies(read_corpus(folder, reader)[0])[0]
