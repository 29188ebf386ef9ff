"""How often the replies of a model reflect, ask and adhere to motivational interviewing, beside people's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attune.classifiers.behaviour.classifier import BEHAVIOURS, LABELS

Rows = Sequence[Sequence[float]]

# Behaviour to the name of its share.
SHARES = {"reflection": "reflections", "question": "questions", "therapist_input": "input", "other": "other"}


def per_example(predictions: Rows, references: Rows) -> dict[str, list[float]]:
    """The columns of N examples, all times 100.

    Args:
        predictions: of `behaviour.probabilities`, (N, 6), for the replies.
        references: the same for the human replies.

    Returns:
        `behaviour_reflections`, `behaviour_questions`, `behaviour_input`, `behaviour_other`: 100 where it is the
        likeliest behaviour of the reply, else 0; `behaviour_adherent`, `behaviour_non_adherent`: the share of its
        sentences; the same of the human replies with `behaviour_reference_` in front.

    Raises:
        ValueError: there are not as many on both sides.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} replies, but {len(references)} human replies")
    return _columns(predictions, "behaviour_") | _columns(references, "behaviour_reference_")


def _columns(rows: Rows, prefix: str) -> dict[str, list[float]]:
    likeliest = [max(range(len(BEHAVIOURS)), key=row.__getitem__) for row in rows]
    counted = {
        f"{prefix}{name}": [100.0 * (BEHAVIOURS[i] == behaviour) for i in likeliest]
        for behaviour, name in SHARES.items()
    }
    return counted | {
        f"{prefix}{label}": [100 * row[i] for row in rows] for i, label in enumerate(LABELS) if label not in BEHAVIOURS
    }


def metrics(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The means of the columns of `per_example`, and the ratio of reflections to questions of either side.

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
    """Replies that reflect for each one that asks (MITI 4.2, section on summary scores).

    Replies without any question have no ratio: they count as if there were one.
    """
    return reflections / max(questions, 1.0)
