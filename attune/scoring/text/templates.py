"""Template share: how many replies follow the commonest pattern, whatever the user wrote.

A model can learn one kind reply and give it to everybody. Metrics of single replies do not see that. Two patterns are
counted from the replies alone: the first words (`opening`), and the sequence of what the sentences do (`acts`). People
repeat patterns, too, so that a share is read beside that of the human replies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from attune.scoring.text.overlap import tokens

OPENING_WORDS = 3
SENTENCES = re.compile(r"(?<=[.!?\u2026])\s+")
ACTS = {
    "question": r"\?\W*$",
    "sorry": r"\b(?:sorry|apologi[sz]e|condolences|oh no)\b",
    "wish": r"\b(?:hope|wish|congrat\w*|good luck|glad for you|happy for you)\b",
    "advice": r"\b(?:you (?:should|could|can|might|need)|try to|why don't you|maybe you|let's|make sure)\b",
    "self": r"^\W*(?:i|i'm|i've|i'd|i'll|my|me|we)\b",
    "user": r"\b(?:you|your|you're|you've|yours)\b",
    "exclamation": r"!\W*$",
}
"""Act of a sentence to its pattern; the first that is found counts, `statement` where none is."""
PATTERNS = {act: re.compile(pattern, re.IGNORECASE) for act, pattern in ACTS.items()}
SHARES = ("opening_share", "act_share")


def opening(reply: str) -> tuple[str, ...]:
    """The first `OPENING_WORDS` tokens of a reply, in lower case; fewer of a shorter one."""
    return tuple(tokens(reply)[:OPENING_WORDS])


def acts(reply: str) -> tuple[str, ...]:
    """What each sentence of a reply does, one of `ACTS` or `statement`; empty for an empty reply."""
    sentences = [sentence for sentence in SENTENCES.split(reply.replace("\u2019", "'").strip()) if tokens(sentence)]
    return tuple(
        next((act for act, pattern in PATTERNS.items() if pattern.search(sentence)), "statement")
        for sentence in sentences
    )


def per_reply(replies: Sequence[str]) -> dict[str, list[float]]:
    """Whether each of (N,) replies has the commonest opening, and the commonest sequence of acts: 100 or 0.

    Empty replies have none. Of equally common patterns the first in order of the alphabet counts.

    Returns:
        `SHARES`, in the order of the replies.
    """
    return {name: _commonest(list(map(of, replies))) for name, of in zip(SHARES, (opening, acts), strict=True)}


def _commonest(patterns: Sequence[tuple[str, ...]]) -> list[float]:
    times = Counter(pattern for pattern in patterns if pattern)
    most = max(times.values(), default=0)
    first = min((pattern for pattern in patterns if times[pattern] == most), default=None) if most else None
    return [100.0 * (pattern == first) for pattern in patterns]
