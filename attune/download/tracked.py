"""Whether Git or DVC tracks a user's files: the temporary folders of experiments hold tracked files alone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from attune.config.schema import Params

OUTS = ("data/dialogues", "data/raw", "models")
"""What a stage writes: never missing in an experiment."""


def own_paths(params: Params) -> list[str]:
    """The files and folders that a run takes from the user, as the params name them."""
    corpus, model = params.corpus, params.model
    dialogues = [f"{corpus.local_folder}/{part}" for part in corpus.parts] if corpus.local_folder else []
    replies = [str(variant.replies_file) for variant in params.variants.values() if variant.replies_file]
    folders = [one.folder for one in (model, params.encoder) if one.source == "folder"]
    scored_by = (params.epitome.checkpoints, params.epitome.levels)
    return list(dict.fromkeys([*dialogues, params.pairs.table, *scored_by, *folders, *replies]))


def untracked(paths: Iterable[str]) -> list[str]:
    """A sentence for each path that experiments in temporary folders would not find, with what to do.

    They find what Git or DVC tracks, what a stage writes, and absolute paths. None outside a Git repository, which has
    no experiments, and none for a path that does not exist.
    """
    return [
        f"{path} is tracked by neither Git nor DVC: `dvc exp run --temp`, `--queue` and studies copy tracked files "
        f"only and would not find it; {adding(path)} let them"
        for path in map(Path, paths)
        if not _is_found(path)
    ]


def adding(path: Path) -> str:
    """The two commands that have DVC track a path."""
    return f"`dvc add {path}` and `git add {path}.dvc {path.parent / '.gitignore'}`"


def in_experiment(folder: Path) -> bool:
    """Whether `folder` is, or is within, the copy of the tracked files that an experiment runs in."""
    return "/.dvc/tmp/exps/" in f"{folder.resolve().as_posix()}/"


def _is_found(path: Path) -> bool:
    if path.expanduser().is_absolute() or not path.exists() or any(path.is_relative_to(out) for out in OUTS):
        return True
    # `dvc add my_data/chats` writes my_data/chats.dvc; of a file in it, my_data/chats/a.jsonl.dvc.
    if any(Path(f"{one}.dvc").is_file() for one in (path, *path.parents)) or any(path.glob("*.dvc")):
        return True
    listed = subprocess.run(["git", "ls-files", "--", str(path)], capture_output=True, text=True, check=False)
    return listed.returncode != 0 or bool(listed.stdout)
