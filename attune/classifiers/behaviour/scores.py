"""Metrics of behaviours and adherence, of the replies and of the human replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attune.classifiers.behaviour.classifier import BEHAVIOURS, LABELS

Rows = Sequence[Sequence[float]]

# Behaviour to the name of its share.
SHARES = {"reflection": "reflections", "question": "questions", "therapist_input": "input", "other": "other"}


def per_example(predictions: Rows, references: Rows) -> dict[str, list[float]]:
    """The columns of N examples, all times 100.

    Args:
        predictions: (N, 6), of `classifier.probabilities`, for the replies.
        references: the same for the human replies.

    Returns:
        `behaviour_reflections`, `behaviour_questions`, `behaviour_input`, `behaviour_other`: 100 if it is the likeliest
        behaviour of the reply, else 0; `behaviour_adherent`, `behaviour_non_adherent`: the share of its sentences; the
        same of the human replies with the prefix `behaviour_reference_`.

    Raises:
        ValueError: the numbers of replies and human replies differ.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} replies, but {len(references)} human replies")
    return _columns(predictions, "behaviour_") | _columns(references, "behaviour_reference_")


def _columns(rows: Rows, prefix: str) -> dict[str, list[float]]:
    likeliest = [max(range(len(BEHAVIOURS)), key=row.__getitem__) for row in rows]
    shares = {
        f"{prefix}{name}": [100.0 * (BEHAVIOURS[i] == behaviour) for i in likeliest]
        for behaviour, name in SHARES.items()
    }
    return shares | {
        f"{prefix}{label}": [100 * row[i] for row in rows] for i, label in enumerate(LABELS) if label not in BEHAVIOURS
    }


def metrics(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The ratio of reflections to questions of the replies and of the human replies, and the means of the columns.

    Raises:
        ValueError: there are no examples.
    """
    if not columns["behaviour_reflections"]:
        raise ValueError("no examples")
    means = {name: sum(column) / len(column) for name, column in columns.items()}
    ratios = {
        f"{prefix}reflection_to_question": reflection_to_question(
            sum(columns[f"{prefix}reflections"]) / 100, sum(columns[f"{prefix}questions"]) / 100
        )
        for prefix in ("behaviour_", "behaviour_reference_")
    }
    return ratios | means


def reflection_to_question(reflections: float, questions: float) -> float:
    """Reflections per question (MITI 4.2, section on summary scores), from the numbers of replies of either behaviour.

    Without questions the ratio is undefined: the denominator is then 1.
    """
    return reflections / max(questions, 1.0)
