"""What a counsellor does in a reply: the behaviours of AnnoMI, and what adheres to motivational interviewing.

Two classifiers: of the reply in its context by AnnoMI's main therapist behaviours (Wu et al. 2022), and of each of its
sentences by whether its label of the MITI code adheres (`data/miti_adherence.csv`), which the labelled sentences of
Welivita and Pu (2022) teach.
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
MAKER = "classifier@behaviour"
# The classifiers' folders, below the one that the stage writes; also what their metrics begin with.
BEHAVIOUR, MITI = "behaviour", "miti"
NOTHING = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
"""An empty reply is none of the first three behaviours, and neither adheres nor fails to."""


def probabilities(
    folder: Path, contexts: Sequence[Sequence[Turn]], replies: Sequence[str], hardware: Hardware
) -> list[list[float]]:
    """What each of N replies does.

    Args:
        folder: what stage `behaviour` wrote.
        contexts: the turns before each reply; the last is the user's.
        replies: N texts.
        hardware: device and precision.

    Returns:
        N rows of `LABELS`: the probabilities of the four behaviours, which sum to 1, and the shares of the reply's
        sentences whose likeliest label is adherent and non-adherent.

    Raises:
        ModelError: `folder` is not what stage `behaviour` writes.
        ValueError: there are not as many contexts as replies.
    """
    acts = classify(folder / BEHAVIOUR, BEHAVIOURS, contexts, replies, hardware, MAKER)
    parts = [sentences(reply) for reply in replies]
    every = [sentence for some in parts for sentence in some]
    rows = classify(folder / MITI, ADHERENCE, [()] * len(every), every, hardware, MAKER)
    guessed = iter([ADHERENCE[max(range(len(row)), key=row.__getitem__)] for row in rows])
    found = []
    for own, some in zip(acts, parts, strict=True):
        labels = [next(guessed) for _ in some]
        shares = [labels.count(label) / max(len(some), 1) for label in ADHERENCE[:2]]
        found.append([*own, *shares] if some else list(NOTHING))
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a text, cut behind `.`, `!`, `?` and at line ends; what has no words is left out."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if normalise(part)]


def signature(folder: Path) -> dict[str, str]:
    """What explains the metrics, from the folders of the classifiers."""
    return describe(folder / BEHAVIOUR, BEHAVIOUR) | describe(folder / MITI, MITI)
