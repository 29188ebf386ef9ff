"""What several test files do."""

import shutil
from collections import Counter
from pathlib import Path

from stages.corpora.reading import read_corpus
from stages.dialogues import Dialogue
from stages.prepare import drop_unusable

ROOT = Path(__file__).resolve().parents[1]


def prepare(folder: Path, reader: str) -> tuple[list[Dialogue], Counter[str]]:
    """The usable dialogues of a corpus and what was dropped, as stage `prepare` has them before it mixes or masks."""
    return drop_unusable(*read_corpus(folder, reader))


def project(folder: Path) -> None:
    """A folder in which DVC finds the pipeline and params are composed, without Git."""
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / "conf", folder / "conf")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
