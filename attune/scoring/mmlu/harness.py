"""MMLU (Hendrycks et al. 2020) on local rows, with the prompts, versions and groups of lm-evaluation-harness.

The rows have the format of the original archive: `dev/<subject>_dev.csv` and `test/<subject>_test.csv` without a
header, with the columns question, four choices and the letter of the correct one. Only the source of the rows differs
from the harness's own task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attune.runtime.errors import DataError
from attune.runtime.io import read_csv

LETTERS = "ABCD"
# The harness's groups, in its order; groups without subjects are left out.
GROUPS = ("stem", "other", "social_sciences", "humanities")
# The fewest values that have a standard error.
FEWEST_QUESTIONS = 2


@dataclass(frozen=True)
class Question:
    """A question, its four choices, and the index of the correct one (0 to 3)."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Subject:
    """`dev`: the solved questions of the few-shot prompt. `test`: the questions to answer."""

    dev: tuple[Question, ...]
    test: tuple[Question, ...]


def read(folder: Path, shots: int, limit: int | None) -> dict[str, Subject]:
    """Read the subjects of `folder`, in alphabetical order.

    Args:
        folder: holds the folders `dev` and `test`.
        shots: solved questions that each subject must have.
        limit: keep only the first `limit` questions of each subject; None: all.

    Raises:
        DataError: a file is missing, a row is malformed, or a subject has too few rows; names file and line.
    """
    names = {split: {p.name.removesuffix(f"_{split}.csv") for p in _files(folder, split)} for split in ("dev", "test")}
    if not names["test"]:
        raise DataError(f"{folder}/test holds no <subject>_test.csv: put the files there, or run stage `download`")
    # The union of both folders, so that a missing file gives an error with its name.
    return {name: _subject(folder, name, shots, limit) for name in sorted(names["dev"] | names["test"])}


def _files(folder: Path, split: str) -> Iterator[Path]:
    return (folder / split).glob(f"*_{split}.csv")


def _subject(folder: Path, name: str, shots: int, limit: int | None) -> Subject:
    paths = {split: folder / split / f"{name}_{split}.csv" for split in ("dev", "test")}
    dev, test = (tuple(_questions(path)) for path in paths.values())
    for path, rows, fewest in ((paths["dev"], dev, shots), (paths["test"], test, FEWEST_QUESTIONS)):
        if len(rows) < fewest:
            raise DataError(f"{path}: {len(rows)} rows, expected at least {fewest} (mmlu.shots = {shots})")
    return Subject(dev, test[:limit])


def _questions(path: Path) -> Iterator[Question]:
    for line, row in read_csv(path, DataError, "a subject needs a dev and a test file"):
        yield _checked(row, f"{path}:{line}")


def _checked(row: list[str], where: str) -> Question:
    if len(row) != len(LETTERS) + 2:
        raise DataError(f"{where}: {len(row)} columns, expected question, A, B, C, D, letter: {row[0][:40]!r}")
    question, *choices, letter = row
    if letter not in tuple(LETTERS):
        raise DataError(f"{where}: the correct choice is {letter!r}, expected A, B, C or D")
    for name, text in zip(("question", *LETTERS), row, strict=False):
        if not text.strip():
            raise DataError(f"{where}: column {name} is empty")
    return Question(question, tuple(choices), LETTERS.index(letter))


def digest(subjects: Mapping[str, Subject]) -> str:
    """Sha256 of the parsed rows, which does not depend on the quoting and line ends of the files."""
    rows = {name: asdict(subject) for name, subject in subjects.items()}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def questions(subjects: Mapping[str, Subject]) -> int:
    """The number of test questions."""
    return sum(len(subject.test) for subject in subjects.values())


def evaluate(lm: Any, subjects: Mapping[str, Subject], shots: int, log_samples: bool = False) -> dict[str, Any]:
    """Run the harness's MMLU on the rows.

    Args:
        lm: an `lm_eval` model.
        subjects: of `read`.
        shots: solved questions before each question.
        log_samples: include the prompts and answers of every question in the result.

    Returns:
        The harness's result.

    Raises:
        DataError: the harness has no such subject.
    """
    from lm_eval.evaluator import evaluate as harness

    results = harness(lm, tasks(subjects, shots), log_samples=log_samples)
    assert results is not None  # lm_eval returns None where lm.rank > 0; it is 0 on each rank here
    return dict(results)


def tasks(subjects: Mapping[str, Subject], shots: int) -> Any:
    """The harness's tasks and groups for these subjects, as its `TaskManager` loads them.

    Raises:
        DataError: the harness has no such subject.
    """
    import lm_eval
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    manager = TaskManager(include_path=folder, include_defaults=False)
    index = manager.task_index
    for name in subjects:
        if f"mmlu_{name}" not in index:
            known = ", ".join(task.removeprefix("mmlu_") for task in manager.all_subtasks)
            raise DataError(f"{name!r} is not a subject of MMLU: name its files after one of {known}")
    top = Group.from_config({**index["mmlu"].cfg, "task": []})
    for name in GROUPS:
        group = Group.from_config({**index[f"mmlu_{name}"].cfg, "task": []})
        # A group of the harness has the tasks that carry its tag.
        members = [subject for subject in subjects if index[f"mmlu_{subject}"].cfg["tag"] == f"mmlu_{name}_tasks"]
        for subject in members:
            config = {**index[f"mmlu_{subject}"].cfg, **_local_rows(subjects[subject], shots)}
            group.add(manager.load([config])["tasks"][f"mmlu_{subject}"])
        if len(group):
            top.add(group)
    return manager.load([top])


def _local_rows(subject: Subject, shots: int) -> dict[str, Any]:
    """The settings that differ from the harness's own task: the source of the rows, and the number of shots."""
    from datasets import Dataset, DatasetDict

    splits = {"dev": subject.dev, "test": subject.test}
    rows = DatasetDict({name: Dataset.from_list([asdict(q) for q in split]) for name, split in splits.items()})
    return {"custom_dataset": lambda **_: rows, "num_fewshot": shots}


def metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy and its standard error over all questions and in each group, times 100.

    Args:
        results: of `evaluate`.

    Returns:
        `acc`, `acc_stderr`, and `acc_<group>`, `acc_<group>_stderr` for the groups that have subjects.
    """
    accuracies = {}
    for name, suffix in (("mmlu", ""), *((f"mmlu_{group}", f"_{group}") for group in sorted(GROUPS))):
        if name in results["groups"]:
            values = results["groups"][name]
            accuracies[f"acc{suffix}"] = 100 * float(values["acc,none"])
            accuracies[f"acc{suffix}_stderr"] = 100 * float(values["acc_stderr,none"])
    return accuracies


def versions(results: Mapping[str, Any]) -> str:
    """The versions of the harness's group and of its tasks."""
    tasks = sorted({str(version) for name, version in results["versions"].items() if name not in results["groups"]})
    return f"group {results['versions']['mmlu']}, task {', '.join(tasks)}"
