"""Preference pairs by the stages of dialectical behavior therapy (Son and So, section 2.2).

In the paper, ChatGPT writes replies from the conversation and the four stages, and they are chosen or rejected by how
well they follow the stages. Here a source gives candidates for a context and a judge, a classifier of the stages or an
endpoint, scores them from 0 to 1; the best is chosen, the worst is rejected, and the pair is kept if their scores
differ by more than a margin (`ranked`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attune.config.schema import Hardware
from attune.data.dialogue import Turn
from attune.pairs.ranked import Judge


def dbt_judge(folder: Path, hardware: Hardware) -> Judge:
    """Adherence by the classifier in `folder`: 1 - P(none of the stages)."""

    def judge(contexts: Sequence[Sequence[Turn]], replies: Sequence[str]) -> list[float | None]:
        from attune.classifiers.dbt.classifier import probabilities

        return [1 - row[-1] for row in probabilities(folder, contexts, replies, hardware)]

    return judge
