"""Duels of two replies to one context: what the judge is asked, in both orders, and what its answers mean.

A judge often prefers the reply that it reads first (Zheng et al. 2023, arXiv:2306.05685, section 3.3). Each duel is
asked in both orders: a verdict that changes with the order is a tie, as there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from attune.runtime.io import json_object

NAMES = {"system": "Instruction", "user": "Seeker", "assistant": "Supporter"}
PLACES = {"conversation", "first", "second"}
"""The placeholders of the prompt."""
POINTS = {"1": 1.0, "2": 0.0, "0": 0.5}
"""A verdict to the points of the reply that is shown first."""


@dataclass(frozen=True)
class Duel:
    """A context and two replies, of which the first is the one that the win rate is of."""

    id: str
    context: tuple[tuple[str, str], ...]
    ours: str
    theirs: str


@dataclass(frozen=True)
class Verdict:
    """The judge's answers to a duel in both orders, as points of `ours`: 1, 0.5 or 0; None where unreadable."""

    ours_first: float | None
    theirs_first: float | None
    reasons: tuple[str, str]

    @property
    def points(self) -> float | None:
        """The points of both orders if they agree, 0.5 if they do not; None if one is unreadable."""
        if self.ours_first is None or self.theirs_first is None:
            return None
        return self.ours_first if self.ours_first == self.theirs_first else 0.5

    @property
    def flipped(self) -> bool:
        """Whether the verdict changes with the order."""
        return self.points is not None and self.ours_first != self.theirs_first


def duel(row: Mapping[str, Any], ours: str, theirs: str) -> Duel:
    """The duel of two replies to the context of a row of replies."""
    context = tuple((str(turn["role"]), str(turn["text"])) for turn in row["context"])
    return Duel(str(row["id"]), context, ours, theirs)


def prompts(template: Template, duels: Sequence[Duel]) -> list[str]:
    """Two texts for each duel: `ours` first, then `theirs` first."""
    texts = []
    for one in duels:
        conversation = "\n".join(f"{NAMES[role]}: {text}" for role, text in one.context)
        for first, second in ((one.ours, one.theirs), (one.theirs, one.ours)):
            shown = {"first": first.strip() or "(empty)", "second": second.strip() or "(empty)"}
            texts.append(template.substitute(conversation=conversation, **shown))
    return texts


def verdicts(answers: Sequence[str | None]) -> list[Verdict]:
    """The verdict of each duel.

    Args:
        answers: (2N,) of the judge to `prompts`.
    """
    read = [parse(answer) for answer in answers]
    made = []
    for (straight, reason), (turned, other) in zip(read[::2], read[1::2], strict=True):
        made.append(Verdict(straight, None if turned is None else 1 - turned, (reason, other)))
    return made


def parse(answer: str | None) -> tuple[float | None, str]:
    """The points of the reply that is shown first, 1, 0.5 or 0, and the reason, of the JSON object in an answer.

    Models write text around it: it is read from the first to the last brace. Small ones leave it out: an answer that is
    the number and nothing else is a verdict without a reason. None without a readable verdict.
    """
    text = answer or ""
    if alone := re.fullmatch(r"\W*(?:reply )?([012])\W*", text, re.IGNORECASE):
        return POINTS[alone[1]], ""
    found = json_object(text)
    reason = found.get("reason")
    points = POINTS.get(str(found.get("better")).strip())
    return points, reason.strip() if isinstance(reason, str) else ""
