"""Preference pairs from the quality of counselling (Damasco, section 5.1: AnnoMI's high- and low-quality sessions).

The paper names the data and no rule. Here a therapist's reply in a session of high quality is chosen, and one in a
session of low quality rejected; where a corpus says nothing of its sessions but labels replies by the MITI code, an
MI-adherent reply is chosen and an MI-non-adherent one rejected. The rejected reply of a session answers a client who
talks about the same topic in the same way (change, neutral, sustain), where there is such a reply; that of a corpus
without judged sessions answers the same post, else one of the same source. Draws are keyed as those of
`opposite_emotion`: order, subset and number of workers do not move a pair.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from attune.data.dialogue import Example, normalise
from attune.data.pair import Pair
from attune.labels.turn_labels import require_known
from attune.pairs.opposite_emotion import draw

MATCHES = ("post", "source", "topic_and_talk", "topic", "talk", "none")
"""What chosen and rejected have in common, in the order in which it is tried: the first two where sessions are not
judged, the next three where they are."""
CHOSEN = {"high": True, "low": False, "adherent": True, "non-adherent": False}

Key = tuple[str, str | None, str | None]
"""A match with the topic, source or post and the client's talk type that it asks for."""
Pool = Mapping[Key, Sequence[Example]]


@dataclass(frozen=True)
class MatchedPair(Pair):
    """A pair of counselling, and what of `MATCHES` its two replies have in common."""

    match: str


def sides(examples: Sequence[Example], adherence: Mapping[str, str]) -> tuple[list[Example], list[Example]]:
    """The examples whose reply can be chosen, and those whose reply can be rejected, each in order of the ids.

    Args:
        examples: with the quality of their session, or, where the corpus has none, the act of the reply.
        adherence: act to adherent, non-adherent or neither, which is on neither side.

    Raises:
        DataError: a session without quality has an act that the table lacks.
    """
    found: dict[bool | None, list[Example]] = defaultdict(list)
    acts = Counter(one.act for one in examples if one.quality is None and one.act)
    require_known(Counter({act: count for act, count in acts.items() if act not in adherence}), "behaviour.table")
    for one in sorted(examples, key=lambda e: e.id):
        found[CHOSEN.get(one.quality or adherence.get(one.act or "", ""))].append(one)
    return found[True], found[False]


def group_by_match(rejected: Iterable[Example]) -> Pool:
    """The candidates of every match, in order of their ids, so that the order of the input does not matter."""
    pool: dict[Key, list[Example]] = defaultdict(list)
    for one in sorted(rejected, key=lambda e: e.id):
        for key in _keys(one):
            pool[key].append(one)
    return pool


def counselling_pairs(examples: Iterable[Example], pool: Pool, *, seed: int, epoch: int) -> list[MatchedPair]:
    """The pairs of one epoch, in order of the example ids.

    Args:
        examples: those of `sides` whose reply can be chosen.
        pool: of `group_by_match`.
        seed: of the run.
        epoch: from 1 in training; 0 is the held-out draw of stage `generate`.

    Returns:
        One pair an example: the rejected reply is one uniform draw from those of the first match that has a reply with
        another text. An example without such a reply gives none.
    """
    pairs = []
    for one in sorted(examples, key=lambda e: e.id):
        for key in _keys(one):
            if other := draw(one, pool.get(key, ()), seed, epoch):
                sides_of = (one.context, one.target, other.target, one.label, other.label, other.id)
                pairs.append(MatchedPair(one.id, epoch, *sides_of, match=key[0]))
                break
    return pairs


def match_counts(pairs: Sequence[MatchedPair]) -> dict[str, float]:
    """The pairs of each match: their number, `match_<name>_pairs`, and their share in percent, `match_<name>`."""
    counts = Counter(pair.match for pair in pairs)
    shares = {f"match_{name}": round(100 * counts[name] / len(pairs), 4) for name in MATCHES}
    return shares | {f"match_{name}_pairs": counts[name] for name in MATCHES}


def _keys(one: Example) -> list[Key]:
    """The matches of an example, the closest first.

    Of sessions that are not judged, the label is where they come from, and many answer the same post. A client's turn
    without a talk type matches no other by it.
    """
    talk = one.context[-1].act
    if one.quality is None:
        return [("post", normalise(one.context[0].text), None), ("source", one.label, None), ("none", None, None)]
    if talk is None:
        return [("topic", one.label, None), ("none", None, None)]
    return [("topic_and_talk", one.label, talk), ("topic", one.label, None), ("talk", None, talk), ("none", None, None)]
