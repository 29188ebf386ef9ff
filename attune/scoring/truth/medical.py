"""MMLU's subjects on health, in the forms of `questions.FORMS`; rows, shots and task are those of stage `mmlu`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import DataError
from attune.scoring.mmlu import harness
from attune.scoring.mmlu.harness import Question, Subject
from attune.scoring.truth.questions import FORMS, worded

if TYPE_CHECKING:
    import pandas as pd

    from attune.config.schema import Mmlu


def read(folder: Path, names: Sequence[str], settings: Mmlu) -> dict[str, Subject]:
    """The named subjects of `folder`.

    Args:
        folder: as in `harness.read`.
        names: of subjects; none: the folder is not read.
        settings: shots and limit.

    Raises:
        DataError: a file is missing or malformed, or the folder lacks a subject.
    """
    if not names:
        return {}
    subjects = harness.read(folder, settings.shots, settings.limit)
    if lacking := [name for name in names if name not in subjects]:
        raise DataError(
            f"{folder} has no {', '.join(lacking)}, which truth.medical names: put the files there, or name some of "
            f"{', '.join(subjects)} ([] for none)"
        )
    return {name: subjects[name] for name in sorted(set(names))}


def asked(question: Question, form: str) -> Question:
    """The question in a form; the belief is the wrong choice that follows the right one, A after D.

    So each letter is as often the belief as it is right: models prefer letters, above all A.
    """
    belief = question.choices[(question.answer + 1) % len(question.choices)]
    return replace(question, question=worded(question.question, form, belief))


def scores(lm: Any, subjects: Mapping[str, Subject], settings: Mmlu) -> tuple[pd.DataFrame, str]:
    """Ask the test questions in each form, each after the solved questions as they are.

    Args:
        lm: an `lm_eval` model.
        subjects: of `read`, at least one.
        settings: form of the task, and shots.

    Returns:
        (N,) rows of `id` and, with the ends of `FORMS`, `medical_acc`, 100 or 0, and `medical_margin`, as
        `answer_margin` of `harness.answers`; and the versions of the task.
    """
    import pandas as pd

    columns: dict[str, Any] = {}
    versions = ""
    for form, end in FORMS.items():
        worded_ones = {
            name: replace(subject, test=tuple(asked(one, form) for one in subject.test))
            for name, subject in subjects.items()
        }
        results = harness.evaluate(lm, worded_ones, settings.shots, settings.form)
        answers = harness.answers(results, worded_ones, settings.form)
        columns |= {
            "id": answers["id"],
            f"medical_acc{end}": answers["acc"],
            f"medical_margin{end}": answers["answer_margin"],
        }
        versions = harness.versions(results)
    return pd.DataFrame(columns), versions
