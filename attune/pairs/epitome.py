"""Preference pairs by a level of EPITOME (Sharma et al. 2020), of samples of the model that the round starts from.

This project's rule: a classifier gives each sample the level that it expects, from 0 to 1. Of the two samples of
similar length whose levels differ most, the higher is chosen, and the pair is kept if they differ by more than a margin
(`ranked`). A model can learn to please the classifier that ranks its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attune.config.schema import Hardware
from attune.data.dialogue import Turn
from attune.pairs.ranked import Judge


def epitome_judge(folder: Path, mechanism: str, hardware: Hardware) -> Judge:
    """The level of a mechanism that the classifier in `folder` expects, over the highest: Σ level · P(level) / 2.

    Args:
        folder: of the classifiers.
        mechanism: er, ip or ex.
        hardware: threads and device.
    """

    def judge(contexts: Sequence[Sequence[Turn]], replies: Sequence[str]) -> list[float | None]:
        import torch

        from attune.classifiers.epitome.files import load
        from attune.classifiers.epitome.levels import level_logits, seeker_post
        from attune.classifiers.epitome.model import LEVELS, MECHANISMS

        torch.set_num_threads(hardware.threads)
        logits = level_logits(load(folder, hardware), [seeker_post(context) for context in contexts], replies)
        (name,) = (name for name, short in MECHANISMS.items() if short == mechanism)
        scores: list[float | None] = (logits[name].softmax(-1) @ torch.linspace(0, 1, LEVELS)).tolist()
        return scores

    return judge
