"""The dialogues that a classifier is trained on, and the name of their source."""

from __future__ import annotations

from pathlib import Path

from attune.corpora.readers.registry import read_every_split
from attune.data.dialogue import Dialogue

PREPARED = Path("data/dialogues")
SAMPLES = Path("data/sample")


def read_sources(folder: Path, reader: str) -> list[Dialogue]:
    """The dialogues of all splits: the prepared ones in `PREPARED`, or those of a corpus folder.

    Raises:
        DataError: a file is missing or does not fit its format.
    """
    return read_every_split(folder, None if folder == PREPARED else reader)


def trained_on(folder: Path, corpus: str) -> str:
    """The text "trained on <name>".

    Args:
        folder: of the training data.
        corpus: the run's corpus, which names the prepared dialogues. An embedded sample is named "sample".
    """
    if folder == PREPARED:
        return f"trained on {corpus}"
    return f"trained on {'sample' if folder.parent == SAMPLES else folder.name}"
