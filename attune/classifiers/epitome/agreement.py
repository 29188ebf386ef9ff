"""How good classifiers of EPITOME are: on annotated posts, and by their agreement with published levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attune.classifiers.common.quality import accuracy, f1, kappa, macro_f1, majority
from attune.classifiers.epitome.annotations import IGNORED
from attune.classifiers.epitome.model import LEVELS, MECHANISMS
from attune.classifiers.epitome.published_levels import PEOPLE, Levelled

ALL = "all"
"""All replies of all systems and of people."""
Levels = Mapping[str, Sequence[int]]
"""Mechanism to the levels of N replies."""


def quality(
    truth: Sequence[int],
    predicted: Sequence[int],
    marked: Sequence[Sequence[int]],
    found: Sequence[Sequence[int]],
) -> dict[str, float]:
    """Quality of a classifier on N examples, in percent; all 0 without examples.

    Args:
        truth: (N,) annotated levels.
        predicted: (N,) levels.
        marked: N rows (T,) of labels of tokens, 1 inside a rationale; IGNORED ones do not count.
        found: N rows of predicted labels, of T or more tokens (padding).

    Returns:
        `accuracy` and `macro_f1` of the level, `rationale_f1` over tokens, and of the majority-class baseline
        `majority_accuracy` and `majority_macro_f1`.
    """
    baseline = majority(truth, LEVELS)
    tokens = [
        (label, guess)
        for labels, guesses in zip(marked, found, strict=True)
        for label, guess in zip(labels, guesses, strict=False)
        if label != IGNORED
    ]
    return {
        "accuracy": accuracy(truth, predicted),
        "macro_f1": macro_f1(truth, predicted),
        "rationale_f1": f1([label for label, _ in tokens], [guess for _, guess in tokens], 1),
        "majority_accuracy": accuracy(truth, baseline),
        "majority_macro_f1": macro_f1(truth, baseline),
    }


def agreement(rows: Sequence[Levelled], ours: Levels) -> dict[str, dict[str, dict[str, Any]]]:
    """Agreement with published levels, by the short name of a mechanism and by system (people's replies, too) or `ALL`.

    Args:
        rows: N replies with published levels.
        ours: their levels by the classifiers.

    Returns:
        `n`, `accuracy` in percent, Cohen's `kappa`, and `confusion`, 3 x 3 counts: a row for each published level, a
        column for each of ours.
    """
    systems = list(dict.fromkeys(row.system for row in rows))
    chosen = {name: [i for i, row in enumerate(rows) if name in (ALL, row.system)] for name in (ALL, *systems)}
    return {
        short: {
            name: _agreement([rows[i].levels[mechanism] for i in part], [ours[mechanism][i] for i in part])
            for name, part in chosen.items()
        }
        for mechanism, short in MECHANISMS.items()
    }


def _agreement(published: Sequence[int], ours: Sequence[int]) -> dict[str, Any]:
    confusion = [[0] * LEVELS for _ in range(LEVELS)]
    for row, column in zip(published, ours, strict=True):
        confusion[row][column] += 1
    return {
        "n": len(published),
        "accuracy": accuracy(published, ours),
        "kappa": kappa(published, ours),
        "confusion": confusion,
    }


def differences(rows: Sequence[Levelled], ours: Levels) -> dict[str, dict[str, float]]:
    """diff-EPITOME of each system by our levels, `diff_er` and so on, and by the published ones, `published_diff_er`.

    Args:
        rows: N replies with published levels, those of people to the same dialogues among them.
        ours: their levels by the classifiers.
    """
    human = {row.dialogue: i for i, row in enumerate(rows) if row.system == PEOPLE}
    found: dict[str, dict[str, float]] = {}
    for system in dict.fromkeys(row.system for row in rows if row.system != PEOPLE):
        pairs = [(i, human[row.dialogue]) for i, row in enumerate(rows) if row.system == system]
        found[system] = {
            f"{prefix}diff_{short}": sum((levels[reply] - levels[reference]) ** 2 for reply, reference in pairs)
            / len(pairs)
            for mechanism, short in MECHANISMS.items()
            for prefix, levels in (("", ours[mechanism]), ("published_", [row.levels[mechanism] for row in rows]))
        }
    return found


def summary(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]], gaps: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The flat metrics of a classifier: accuracy and kappa of `agreement`, and of `differences` ours less published."""
    metrics: dict[str, float] = {}
    for short, systems in found.items():
        metrics[f"{short}_published_accuracy"] = systems[ALL]["accuracy"]
        for name, values in systems.items():
            end = "" if name == ALL else f"_{_key(name)}"
            metrics[f"{short}_published_kappa{end}"] = values["kappa"]
        for name, diffs in gaps.items():
            metrics[f"{short}_published_gap_{_key(name)}"] = diffs[f"diff_{short}"] - diffs[f"published_diff_{short}"]
    return metrics


def _key(system: str) -> str:
    return system.replace("-", "_")
