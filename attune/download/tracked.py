"""Whether Git or DVC tracks a user's files: the temporary folders of experiments hold tracked files alone."""

from __future__ import annotations

import subprocess
from pathlib import Path


def is_tracked(folder: str) -> bool:
    """Whether experiments in temporary folders find `folder`: Git or DVC tracks it, or its path is absolute.

    True outside a Git repository, which has no experiments.
    """
    path = Path(folder)
    if path.expanduser().is_absolute() or not path.exists():
        return True
    # `dvc add my_data` writes my_data.dvc; `dvc add my_data/chats.jsonl` a file in the folder, which Git may track.
    if any(path.parent.glob(f"{path.name}.dvc")) or any(path.glob("*.dvc")):
        return True
    listed = subprocess.run(["git", "ls-files", "--", folder], capture_output=True, text=True, check=False)
    return listed.returncode != 0 or bool(listed.stdout)


def untracked(folder: str) -> str:
    """What to do about a folder that is not tracked, in a sentence."""
    return (
        f"{folder} is tracked by neither Git nor DVC: `dvc exp run --temp`, `--queue` and studies copy tracked "
        f"files only and would not find it; `dvc add {folder}` and `git add {folder}.dvc .gitignore` let them"
    )
