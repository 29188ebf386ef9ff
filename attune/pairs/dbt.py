"""Preference pairs by the stages of dialectical behavior therapy (Son and So, section 2.2).

In the paper, ChatGPT writes replies from the conversation and the four stages, and they are chosen or rejected by how
well they follow the stages. Here a source gives candidates for a context and a judge scores them from 0 to 1; the best
is chosen, the worst is rejected, and the pair is kept if their scores differ by more than a margin. Sources are keyed
by (seed, epoch, example id), so a pair does not depend on order, subset or number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.config.schema import Hardware
from attune.data.dialogue import Example, Turn, normalise


@dataclass(frozen=True)
class ScoredPair:
    """One preference: the best and the worst candidate for `prompt`, with their scores from 0 to 1."""

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
    """Replies to N contexts, as N lists of texts, and the number of answers that could not be parsed."""

    replies: list[list[str]]
    malformed: int = 0


Source = Callable[[Sequence[Example]], Candidates]
"""Candidates for examples, in their order."""
Judge = Callable[[Sequence[Sequence[Turn]], Sequence[str]], list[float | None]]
"""Scores of replies in their contexts, 0 to 1, higher follows the stages better; None if an answer cannot be parsed."""


def scored_pairs(
    examples: Iterable[Example], source: Source, judge: Judge, *, name: str, margin: float, epoch: int
) -> tuple[list[ScoredPair], int]:
    """The pairs of one epoch, in order of the example ids, and the number of malformed answers.

    Args:
        examples: contexts to make pairs of.
        source: of candidates; those with the same normalised text count once.
        judge: of candidates.
        name: of the source, for the pairs.
        margin: the score of the chosen reply exceeds that of the rejected one by more than this.
        epoch: from 1.
    """
    ordered = sorted(examples, key=lambda e: e.id)
    candidates = source(ordered)
    rows = [(e, text) for e, texts in zip(ordered, candidates.replies, strict=True) for text in _distinct(texts)]
    scores = judge([example.context for example, _ in rows], [text for _, text in rows])
    judged: dict[str, list[tuple[float, str]]] = {}
    for (example, text), score in zip(rows, scores, strict=True):
        if score is not None:
            judged.setdefault(example.id, []).append((score, text))
    pairs = []
    for e in ordered:
        # Ties are broken by the text, which does not depend on the batch.
        ranked = sorted(judged.get(e.id, []))
        if ranked and ranked[-1][0] - ranked[0][0] > margin:
            (low, worst), (high, best) = ranked[0], ranked[-1]
            pairs.append(ScoredPair(e.id, epoch, e.context, best, worst, e.label, high, low, name))
    return pairs, candidates.malformed + sum(score is None for score in scores)


def classifier_judge(folder: Path, hardware: Hardware) -> Judge:
    """Adherence by the classifier in `folder`: 1 - P(none of the stages)."""

    def judge(contexts: Sequence[Sequence[Turn]], replies: Sequence[str]) -> list[float | None]:
        from attune.classifiers.dbt.classifier import probabilities

        return [1 - row[-1] for row in probabilities(folder, contexts, replies, hardware)]

    return judge


def _distinct(texts: Iterable[str]) -> list[str]:
    """The texts that have words, each normalised text once."""
    by_words: dict[str, str] = {}
    for text in texts:
        if words := normalise(text):
            by_words.setdefault(words, text.strip())
    return list(by_words.values())
