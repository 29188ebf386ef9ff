"""Preference pairs by the stages of dialectical behavior therapy (Son and So, section 2.2).

The paper has ChatGPT write replies from the conversation and the four stages, and calls them chosen or rejected by how
well they follow the stages. Here any source gives candidates for a context and any judge scores them from 0 to 1; the
best is chosen, the worst rejected, and a pair is kept if its margin is wide enough. Both work on a context alone, keyed
by (seed, epoch, example id), so order, subset and number of workers do not move a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.config.schema import Hardware
from attune.data.dialogue import Example, Turn, normalise


@dataclass(frozen=True)
class ScoredPair:
    """One preference: of the candidates for `prompt` the best and the worst, with their scores from 0 to 1."""

    id: str
    epoch: int
    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    label: str
    chosen_score: float
    rejected_score: float
    source: str


@dataclass(frozen=True)
class Candidates:
    """Replies to N contexts, N lists of texts, and how many answers of the source were of no use."""

    replies: list[list[str]]
    malformed: int = 0


Source = Callable[[Sequence[Example]], Candidates]
"""Candidates for examples, in their order."""
Judge = Callable[[Sequence[Sequence[Turn]], Sequence[str]], list[float | None]]
"""Scores of replies in their contexts, 0 to 1, higher follows the stages better; None where there is no judgement."""


def scored_pairs(
    examples: Iterable[Example], source: Source, judge: Judge, *, name: str, margin: float, epoch: int
) -> tuple[list[ScoredPair], int]:
    """The pairs of one epoch, in order of the example ids, and the number of malformed answers.

    Args:
        examples: contexts to make pairs of.
        source: of candidates; those that differ in case and punctuation alone count once.
        judge: of candidates.
        name: of the source, for the pairs.
        margin: the score of the chosen reply exceeds that of the rejected one by more than this.
        epoch: from 1.
    """
    ordered = sorted(examples, key=lambda e: e.id)
    found = source(ordered)
    rows = [(one, text) for one, texts in zip(ordered, found.replies, strict=True) for text in _distinct(texts)]
    scores = judge([one.context for one, _ in rows], [text for _, text in rows])
    judged: dict[str, list[tuple[float, str]]] = {}
    for (one, text), score in zip(rows, scores, strict=True):
        if score is not None:
            judged.setdefault(one.id, []).append((score, text))
    pairs = []
    for one in ordered:
        # Equal scores are ordered by their texts, which are the same in any batch.
        ranked = sorted(judged.get(one.id, []))
        if ranked and ranked[-1][0] - ranked[0][0] > margin:
            (low, worst), (high, best) = ranked[0], ranked[-1]
            pairs.append(ScoredPair(one.id, epoch, one.context, best, worst, one.label, high, low, name))
    return pairs, found.malformed + sum(score is None for score in scores)


def classifier_judge(folder: Path, hardware: Hardware) -> Judge:
    """Adherence by the classifier in `folder`: 1 - P(none of the stages)."""

    def judge(contexts: Sequence[Sequence[Turn]], replies: Sequence[str]) -> list[float | None]:
        from attune.classifiers.dbt.classifier import probabilities

        return [1 - row[-1] for row in probabilities(folder, contexts, replies, hardware)]

    return judge


def _distinct(texts: Iterable[str]) -> list[str]:
    """The texts that say something, without repetitions."""
    by_words: dict[str, str] = {}
    for text in texts:
        if words := normalise(text):
            by_words.setdefault(words, text.strip())
    return list(by_words.values())
