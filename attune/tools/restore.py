"""Put right what DVC was writing when it was killed.

    python -m attune.tools.restore

DVC 3.67 rewrites `dvc.lock` in place behind every stage, and `.dvc/tmp/rwlock` around one (its modules
`utils/serialize/_common.py` and `rwlock.py`); killed in such a moment it leaves a file that it then refuses to read.
This puts back the `dvc.lock` of the last commit, or removes one that was never committed, and removes an unreadable
`rwlock`. Nothing is lost by it: what stages made is in DVC's run cache, from which the next `dvc repro` takes it. Whole
files are left alone. It can go when DVC writes these files under another name first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from attune.runtime.errors import UserError, reported
from attune.runtime.io import read_text, read_yaml, write_text

LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")


def restore() -> list[str]:
    """Put right `dvc.lock` and `rwlock` of the project in the current folder, where they are cut short.

    Returns:
        What was done, a sentence for each file.

    Raises:
        UserError: DVC is at work here, so that they may be whole in a moment.
    """
    if not (cut_short(LOCK) or cut_short(RWLOCK)):
        return []
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo().lock:
            return [_restored(path) for path in (LOCK, RWLOCK) if cut_short(path)]
    except LockError as error:
        raise UserError(f"DVC is at work here: wait for it, or end it ({error})") from None


def cut_short(path: Path) -> bool:
    """Whether there is such a file of DVC's, and DVC would refuse to read it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if not path.exists():
        return False
    try:
        if path == LOCK:
            COMPILED_LOCKFILE_SCHEMA(read_yaml(path, UserError, ""))
        else:
            json.loads(read_text(path, UserError, ""))
    except (UserError, Invalid, ValueError):
        return True
    return False


def _restored(path: Path) -> str:
    committed = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, text=True)
    if committed.returncode == 0:
        write_text(path, committed.stdout)
        return f"{path} was cut short by a kill: put back as it was committed"
    path.unlink()
    return f"{path} was cut short by a kill: removed, DVC writes it anew"


if __name__ == "__main__":
    with reported():
        for sentence in restore():
            print(sentence, file=sys.stderr)
