"""Preference pairs of ranked candidates, for rules dbt and epitome.

A source gives candidates for a context and a judge scores them from 0 to 1; the best is chosen, the worst is rejected,
and the pair is kept if their scores differ by more than a margin. Sources are keyed by (seed, epoch, example id), so a
pair does not depend on order, subset or number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

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


Scored = tuple[float, str]
"""A candidate's score and text."""
Source = Callable[[Sequence[Example]], Candidates]
"""Candidates for examples, in their order."""
Judge = Callable[[Sequence[Sequence[Turn]], Sequence[str]], list[float | None]]
"""Scores of replies in their contexts, 0 to 1, higher is better; None if an answer cannot be parsed."""


def scored_pairs(
    examples: Iterable[Example],
    source: Source,
    judge: Judge,
    *,
    name: str,
    margin: float,
    epoch: int,
    length_ratio: float | None = None,
) -> tuple[list[ScoredPair], int]:
    """The pairs of one epoch, in order of the example ids, and the number of malformed answers.

    Args:
        examples: contexts to make pairs of.
        source: of candidates; those with the same normalised text count once.
        judge: of candidates.
        name: of the source, for the pairs.
        margin: the score of the chosen reply exceeds that of the rejected one by more than this.
        epoch: from 1.
        length_ratio: the longer of the two has at most this many times the words of the shorter one; None: any number.
    """
    ordered = sorted(examples, key=lambda e: e.id)
    candidates = source(ordered)
    rows = [(e, text) for e, texts in zip(ordered, candidates.replies, strict=True) for text in _distinct(texts)]
    scores = judge([example.context for example, _ in rows], [text for _, text in rows])
    judged: dict[str, list[Scored]] = {}
    for (example, text), score in zip(rows, scores, strict=True):
        if score is not None:
            judged.setdefault(example.id, []).append((score, text))
    pairs = []
    for e in ordered:
        (low, worst), (high, best) = _furthest_apart(judged.get(e.id, []), length_ratio)
        if high - low > margin:
            pairs.append(ScoredPair(e.id, epoch, e.context, best, worst, e.label, high, low, name))
    return pairs, candidates.malformed + sum(score is None for score in scores)


def _furthest_apart(scored: list[Scored], length_ratio: float | None) -> tuple[Scored, Scored]:
    """The worst and the best of the candidates, among those of similar length; of equal scores if no two are.

    A score that grows with length would otherwise make longer replies the chosen ones.
    """

    def similar(worse: Scored, better: Scored) -> bool:
        shorter, longer = sorted(len(normalise(text).split()) for _, text in (worse, better))
        return length_ratio is None or longer <= length_ratio * shorter

    # Ties are broken by the text, which does not depend on the batch: the first of the worst, the last of the best.
    two = [pair for pair in combinations(sorted(scored), 2) if similar(*pair)]
    return max(two, key=lambda pair: (pair[1][0] - pair[0][0], pair[1]), default=((0.0, ""), (0.0, "")))


def _distinct(texts: Iterable[str]) -> list[str]:
    """The texts that have words, each normalised text once."""
    by_words: dict[str, str] = {}
    for text in texts:
        if words := normalise(text):
            by_words.setdefault(words, text.strip())
    return list(by_words.values())
