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
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from attune.runtime.errors import DataError
from attune.runtime.io import read_csv

if TYPE_CHECKING:
    import pandas as pd

LETTERS = "ABCD"
# The harness's groups, in its order; groups without subjects are left out.
GROUPS = ("stem", "other", "social_sciences", "humanities")
Form = Literal["letters", "cloze"]
FOLDERS = {"letters": "default", "cloze": "continuation"}
"""Form to the folder of its tasks below the harness's `tasks/mmlu`."""
ENDINGS = {"letters": "", "cloze": "_continuation"}
"""Form to the end of the names of its tasks."""
ANSWER_COLUMNS = ("acc", "answer_logp", "answer_margin")
"""The scores of a question; `metrics` gives their means."""
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


def evaluate(lm: Any, subjects: Mapping[str, Subject], shots: int, form: Form = "letters") -> dict[str, Any]:
    """Run the harness's MMLU on the rows.

    Args:
        lm: an `lm_eval` model.
        subjects: of `read`.
        shots: solved questions before each question.
        form: `letters`, the harness's `mmlu`, or `cloze`, its `mmlu_continuation`.

    Returns:
        The harness's result, with the prompts and answers of every question.

    Raises:
        DataError: the harness has no such subject.
    """
    from lm_eval.evaluator import evaluate as harness

    results = harness(lm, tasks(subjects, shots, form), log_samples=True)
    assert results is not None  # lm_eval returns None where lm.rank > 0; it is 0 on each rank here
    return dict(results)


def tasks(subjects: Mapping[str, Subject], shots: int, form: Form = "letters") -> Any:
    """The harness's tasks and groups for these subjects, as its `TaskManager` loads them.

    Raises:
        DataError: the harness has no such subject.
    """
    import lm_eval
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager

    _compile_templates_once()
    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / FOLDERS[form]
    manager = TaskManager(include_path=folder, include_defaults=False)
    index = manager.task_index
    for name in subjects:
        if _task(name, form) not in index:
            ending = ENDINGS[form]
            known = ", ".join(task.removeprefix("mmlu_").removesuffix(ending) for task in manager.all_subtasks)
            raise DataError(f"{name!r} is not a subject of MMLU: name its files after one of {known}")
    whole = index[f"mmlu{ENDINGS[form]}"].cfg
    top = Group.from_config({**whole, "task": []})
    # The groups of `letters` have files of their own; those of `cloze` stand in the file of the whole.
    for part in (index[entry].cfg if isinstance(entry, str) else entry for entry in whole["task"]):
        group = Group.from_config({**part, "task": []})
        # A group of the harness has the tasks that carry its tag.
        members = [subject for subject in subjects if index[_task(subject, form)].cfg["tag"] in part["task"]]
        for subject in members:
            config = {**index[_task(subject, form)].cfg, **_local_rows(subjects[subject], shots)}
            group.add(manager.load([config])["tasks"][_task(subject, form)])
        if len(group):
            top.add(group)
    return manager.load([top])


@cache
def _compile_templates_once() -> None:
    """Keep the compiled templates of the harness's tasks.

    lm_eval 0.4.13 compiles a task's template again for every question and every solved one before it, 10 ms or more a
    question. Can go when EleutherAI/lm-evaluation-harness#1286 is closed.
    """
    from lm_eval import utils

    utils.env.from_string = cache(utils.env.from_string)


def _task(subject: str, form: Form) -> str:
    return f"mmlu_{subject}{ENDINGS[form]}"


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
    found = {_group(name): values for name, values in results["groups"].items()}
    accuracies = {}
    for name, suffix in (("", ""), *((group, f"_{group}") for group in sorted(GROUPS))):
        if name in found:
            accuracies[f"acc{suffix}"] = 100 * float(found[name]["acc,none"])
            accuracies[f"acc{suffix}_stderr"] = 100 * float(found[name]["acc_stderr,none"])
    return accuracies


def _group(name: str) -> str:
    """`social_sciences` of `mmlu_social_sciences` and of `social sciences`; "" of the whole."""
    whole = name in (f"mmlu{ending}" for ending in ENDINGS.values())
    return "" if whole else name.removeprefix("mmlu_").replace(" ", "_")


def answers(results: Mapping[str, Any], subjects: Mapping[str, Subject], form: Form) -> pd.DataFrame:
    """The scores of each question.

    Args:
        results: of `evaluate` on `subjects` in this form.
        subjects: of `read`.
        form: of the task.

    Returns:
        (N,) rows in the order of the subjects and their questions: `id` (`<subject>/<number>`, from 0) and
        `ANSWER_COLUMNS`. `acc` is 100 or 0. A choice's rate is its log-probability in nats divided by the bytes of its
        text, a letter or the whole choice, without the space before it: `answer_logp` is the rate of the right choice,
        `answer_margin` that less the mean rate of the wrong ones.
    """
    import pandas as pd

    rows = []
    for name, subject in subjects.items():
        samples = {sample["doc_id"]: sample for sample in results["samples"][_task(name, form)]}
        for number, question in enumerate(subject.test):
            texts = LETTERS if form == "letters" else question.choices
            logps = [logp for logp, _ in samples[number]["filtered_resps"]]
            rates = [logp / len(text.encode()) for logp, text in zip(logps, texts, strict=True)]
            right = rates.pop(question.answer)
            rows.append((f"{name}/{number}", 100.0 * samples[number]["acc"], right, right - fmean(rates)))
    return pd.DataFrame(rows, columns=["id", *ANSWER_COLUMNS])


def versions(results: Mapping[str, Any]) -> str:
    """The versions of the harness's group and of its tasks."""
    tasks = sorted({str(version) for name, version in results["versions"].items() if name not in results["groups"]})
    whole = next(name for name in results["groups"] if not _group(name))
    return f"group {results['versions'][whole]}, task {', '.join(tasks)}"
