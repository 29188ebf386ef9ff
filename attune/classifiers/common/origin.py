"""Where a classifier's training data come from."""

from __future__ import annotations

from pathlib import Path

DIALOGUES = "data/dialogues"
SAMPLES = Path("data/sample")


def corpus_name(data: str | Path, prepared: str = "") -> str:
    """The corpus in a folder: `prepared` for data/dialogues, "sample" for a folder in data/sample, else its name."""
    path = Path(data)
    if path == Path(DIALOGUES):
        return prepared
    return "sample" if path.parent == SAMPLES else path.name


def reader_of(data: str, reader: str) -> str | None:
    """The reader of the files in `data`; None where they are the dialogues that stage `prepare` wrote."""
    return None if data == DIALOGUES else reader
