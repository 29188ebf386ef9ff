"""What the makers of the embedded samples share: from phrases to files, from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

SAMPLES = Path("data/sample")


def write_files(files: Mapping[str, str], folder: Path) -> None:
    """Write texts to a folder by the names of their files, with the same bytes on every system."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def run(description: str | None, write: Callable[[Path, Path], None], phrases: str, folder: str) -> None:
    """Write a sample from the command line.

    Args:
        description: of the maker.
        write: from the path of the phrases to files in a folder.
        phrases: their file by default, below `data/sample`.
        folder: where the files go by default, below `data/sample`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phrases", type=Path, default=SAMPLES / phrases, help="the written material")
    parser.add_argument("--out", type=Path, default=SAMPLES / folder, help="folder to write to")
    arguments = parser.parse_args()
    write(arguments.phrases, arguments.out)
