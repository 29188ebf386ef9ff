"""Behaviours of a counsellor in a reply (AnnoMI), and adherence to motivational interviewing.

There are two classifiers. One predicts AnnoMI's main therapist behaviour of the reply in its context (Wu et al. 2022).
The other predicts for each sentence whether it adheres to motivational interviewing; it is trained on the sentences of
Welivita and Pu (2022), whose MITI codes a table (`data/miti_adherence.csv`) maps to adherence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.classifiers.common.turn_classifier import classify, describe
from attune.data.dialogue import Turn, normalise
from attune.labels.miti import ADHERENCE

if TYPE_CHECKING:
    from attune.config.schema import Hardware

BEHAVIOURS: tuple[str, ...] = ("question", "reflection", "therapist_input", "other")
LABELS = (*BEHAVIOURS, "adherent", "non_adherent")
"""The columns of `probabilities`."""
STAGE = "classifier@behaviour"
# Subfolders of the two classifiers, and prefixes of their metrics.
BEHAVIOUR, MITI = "behaviour", "miti"
EMPTY_REPLY = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
"""The row of an empty reply: behaviour "other", and no sentence that is adherent or non-adherent."""


def probabilities(
    folder: Path, contexts: Sequence[Sequence[Turn]], replies: Sequence[str], hardware: Hardware
) -> list[list[float]]:
    """Behaviour and adherence of each of N replies.

    Args:
        folder: the two trained classifiers.
        contexts: the turns before each reply; the last is the user's.
        replies: N texts.
        hardware: device and precision.

    Returns:
        N rows in the order of `LABELS`: the probabilities of the four behaviours, which sum to 1, and the shares of the
        reply's sentences whose likeliest label is adherent and non-adherent.

    Raises:
        ModelError: `folder` does not hold the classifiers.
        ValueError: the numbers of contexts and replies differ.
    """
    behaviours = classify(folder / BEHAVIOUR, BEHAVIOURS, contexts, replies, hardware, STAGE)
    texts = [sentences(reply) for reply in replies]
    flat = [sentence for reply in texts for sentence in reply]
    adherence = classify(folder / MITI, ADHERENCE, [()] * len(flat), flat, hardware, STAGE)
    predicted = iter([ADHERENCE[max(range(len(row)), key=row.__getitem__)] for row in adherence])
    rows = []
    for behaviour, reply in zip(behaviours, texts, strict=True):
        labels = [next(predicted) for _ in reply]
        shares = [labels.count(label) / max(len(reply), 1) for label in ADHERENCE[:2]]
        rows.append([*behaviour, *shares] if reply else list(EMPTY_REPLY))
    return rows


def sentences(text: str) -> list[str]:
    """The sentences of a text: it is split after `.`, `!`, `?` and at line ends; parts without words are left out."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if normalise(part)]


def signature(folder: Path) -> dict[str, str]:
    """The origin of the two classifiers in `folder`."""
    return describe(folder / BEHAVIOUR, BEHAVIOUR) | describe(folder / MITI, MITI)
