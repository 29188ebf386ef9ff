"""Quality of a classifier's predictions, in percent but for kappa."""

from __future__ import annotations

from collections.abc import Sequence

BINS = 10


def accuracy(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Share of predictions that equal the label; 0 without examples."""
    from sklearn.metrics import accuracy_score

    return 100 * float(accuracy_score(truth, predicted, normalize=False)) / len(truth) if truth else 0.0


def f1(truth: Sequence[int], predicted: Sequence[int], label: int) -> float:
    """F1 of one label; 0 if neither side has it."""
    from sklearn.metrics import f1_score

    return 100 * float(f1_score(truth, predicted, labels=[label], average="macro", zero_division=0)) if truth else 0.0


def macro_f1(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Unweighted mean of the F1 of the labels that occur on either side; 0 without examples."""
    from sklearn.metrics import f1_score

    return 100 * float(f1_score(truth, predicted, average="macro", zero_division=0)) if truth else 0.0


def kappa(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Cohen's kappa (Cohen 1960), at most 1; 0 is what chance gives, also where both sides have one label alone."""
    from sklearn.metrics import cohen_kappa_score

    constant = len({*truth, *predicted}) < 2
    return 0.0 if constant else float(cohen_kappa_score(truth, predicted))


def majority(truth: Sequence[int], labels: int) -> list[int]:
    """The predictions of the baseline: always the most frequent label, the first of several."""
    return [max(range(labels), key=truth.count)] * len(truth)


def calibration_error(truth: Sequence[int], probabilities: Sequence[Sequence[float]]) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3) over ten bins of equal width; 0 without examples.

    Args:
        truth: (N,) labels.
        probabilities: (N, L), of which the highest of each row is the confidence.
    """
    sums = [0.0] * BINS
    for label, row in zip(truth, probabilities, strict=True):
        confidence = max(row)
        # A bin's term is its size / N times |mean confidence - accuracy|: the sizes cancel, and a sum per bin remains.
        sums[min(int(confidence * BINS), BINS - 1)] += confidence - (row.index(confidence) == label)
    return 100 * sum(map(abs, sums)) / max(len(truth), 1)
