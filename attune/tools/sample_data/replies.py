"""Replies of known empathy for the embedded samples, put together from the clauses of data/sample/replies.yaml.

A clause is written for an emotion, or for a family of emotions with one attitude, and carries one mechanism of EPITOME
(Sharma et al. 2020) weakly or strongly, or none. So the levels of a reply, and the sentences that show them
(rationales), are known without a classifier.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from attune.tools.sample_data.text import Fills, Phrases, chosen, listener_line, with_opener

# The file of clauses, next to the phrases of a sample.
FILE = "replies.yaml"
# Weights of a mechanism being absent, weak and strong in a reply, by the key of its clauses.
SHARES = {"er": (10, 50, 40), "ip": (55, 15, 30), "ex": (55, 15, 30)}
# Clauses that show the attitude. A reply without one of them gets advice or an opinion (none), which shows it as well.
TELLING = {"er2", "ip2", "ex2"}
# The least number of clauses; advice fills up. Shares of longer replies that get advice, and that react at the end.
LEAST = 2
ADVISED, REACT_LAST = 0.15, 0.2
ORDER = ("er1", "er2", "ip1", "ip2", "none", "ex1", "ex2")
# Share of replies that name what the situation is about, where a clause of theirs can.
NAMING = 0.9
# Share of these that name it at once, as a listener's echo.
ECHOING = 0.7
# Clauses that an interjection may open.
OPENED = {"er1", "er2", "ip2", "none"}


@dataclass(frozen=True)
class Reply:
    """The sentences of a reply, each with the key of its clause: mechanism and level, such as er2, or none."""

    sentences: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The whole reply."""
        return " ".join(sentence for _, sentence in self.sentences)

    @property
    def levels(self) -> dict[str, int]:
        """The level of each mechanism."""
        return dict.fromkeys(SHARES, 0) | {key[:2]: int(key[2]) for key, _ in self.sentences if key != "none"}

    def rationales(self, mechanism: str) -> tuple[str, ...]:
        """The sentences that carry a mechanism."""
        return tuple(sentence for key, sentence in self.sentences if key[:2] == mechanism)


def draw_reply(clauses: Phrases, emotion: str, fills: Fills, rng: random.Random) -> Reply:
    """Draw a reply to a speaker with an emotion.

    Args:
        clauses: the file of clauses.
        emotion: a key of its `emotions`.
        fills: of the blanks in clauses.
        rng: of this reply alone.
    """
    family = clauses["families"][clauses["emotions"][emotion]["family"]]
    sentences: list[tuple[str, str]] = []
    used = set()
    naming = rng.random() < NAMING
    # Nobody echoes "that day", which stands for what was said in other words.
    if naming and not fills["about"].startswith("that ") and rng.random() < ECHOING:
        sentences.append(("none", listener_line(rng.choice(family["echo"]), fills)))
        naming = False
    for key in _draw_keys(rng):
        pool = [clause for clause in _pool(clauses, emotion, key) if clause not in used]
        named = [clause for clause in pool if "$about" in clause]
        clause = rng.choice(named if naming and named else [clause for clause in pool if clause not in named])
        naming = naming and clause not in named
        starts = clauses["shared"]["starts"].get(key) if sentences else family["starts"] if key in OPENED else None
        start = rng.choice(starts or [""])
        text = listener_line(chosen(clause, rng), fills)
        sentences.append((key, text if start in used else with_opener(start, text)))
        used |= {clause, start}
    return Reply(tuple(sentences))


def _pool(clauses: Phrases, emotion: str, key: str) -> list[str]:
    """The clauses of a key for an emotion: those for all emotions, those of its family, and its own."""
    own = clauses["emotions"][emotion]
    lists = [part.get(key, []) for part in (clauses["shared"], clauses["families"][own["family"]], own)]
    return [clause for some in lists for clause in some]


def _draw_keys(rng: random.Random) -> list[str]:
    """The keys of a reply's clauses, in their order."""
    levels = {mechanism: rng.choices(range(3), weights)[0] for mechanism, weights in SHARES.items()}
    keys = [f"{mechanism}{level}" for mechanism, level in levels.items() if level]
    if not TELLING.intersection(keys) or rng.random() < ADVISED:
        keys.append("none")
    keys += ["none"] * (LEAST - len(keys))
    keys.sort(key=ORDER.index)
    return keys[1:] + keys[:1] if levels["er"] and rng.random() < REACT_LAST else keys
