"""Sealed checkpoints: the last file written is a manifest with the hash of every other file.

A process may be killed, or a machine lose power, between any two bytes, and a disk may flip a bit. A folder without a
manifest, or with a file that does not match it, is skipped in favour of the previous checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from attune.runtime.io import sha256_of, write_json

MANIFEST = "manifest.json"
KEPT = 2


def seal(folder: Path) -> None:
    """Write the manifest of `folder`, {name: {bytes, sha256}}, after flushing all of its files to the disk."""
    manifest = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        to_disk(path)
        manifest[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(folder / MANIFEST, manifest)
    for path in (folder / MANIFEST, folder, folder.parent):
        to_disk(path)


def damage(folder: Path) -> str | None:
    """The defect of a sealed folder, or None if it is complete; files that the manifest does not list are ignored."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} of {entry['bytes']} bytes"
            if sha256_of(folder / name) != entry["sha256"]:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        name = Path(error.filename).name
        return "it is incomplete" if name == MANIFEST else f"{name} is missing"
    except OSError as error:
        return f"it cannot be read ({error})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None if manifest else f"{MANIFEST} lists no file"


def newest_whole(folder: Path, name: str) -> Path | None:
    """The newest complete folder of the sealed folders `<name>-<step>` in `folder`; None if there is none."""
    return next((path for path in _newest_first(folder, name) if damage(path) is None), None)


def settle(folder: Path, name: str) -> Path | None:
    """As `newest_whole`; also removes damaged folders and prints their defects to stderr."""
    paths = _newest_first(folder, name)
    damaged = {path: reason for path in paths if (reason := damage(path)) is not None}
    whole = next((path for path in paths if path not in damaged), None)
    for path, reason in damaged.items():
        print(f"{path} is discarded: {reason}", file=sys.stderr)
        shutil.rmtree(path, ignore_errors=True)
    if damaged or whole:
        print(
            f"resuming from {whole}"
            if whole
            else f"no checkpoint in {folder} is complete: starting from the beginning",
            file=sys.stderr,
        )
    return whole


def drop_older(folder: Path, name: str) -> None:
    """Remove all but the newest `KEPT` of the sealed folders `<name>-<step>` in `folder`."""
    for path in _newest_first(folder, name)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def step_of(path: Path) -> int:
    """The step in the name of a folder `<name>-<step>`."""
    return int(path.name.rpartition("-")[2])


def to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest_first(folder: Path, name: str) -> list[Path]:
    paths = [path for path in folder.glob(f"{name}-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(paths, key=step_of, reverse=True)
