"""Writing the files of the embedded samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_files(files: Mapping[str, str], folder: Path) -> None:
    """Write texts to a folder by the paths of their files in it, with the same bytes on every system."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
