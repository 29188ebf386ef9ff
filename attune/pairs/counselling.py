"""Preference pairs from the quality of counselling (Damasco, section 5.1: AnnoMI's high- and low-quality sessions).

The paper names the data and no rule. The rule here: a therapist's reply in a session of high quality is chosen, one in
a session of low quality is rejected. If a corpus does not rate its sessions but labels replies by the MITI code, an
MI-adherent reply is chosen and an MI-non-adherent one is rejected.

The rejected reply is drawn (`opposite_emotion.draw`) from the closest match that has a reply with another text. In
rated sessions it answers a client who talks about the same topic in the same way (change, neutral, sustain), else about
the same topic, else in the same way, else any client. Without ratings it answers the same post, else one of the same
source, else any post.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from attune.data.dialogue import Example, normalise, split_system
from attune.data.pair import Pair
from attune.labels.turn_labels import require_known
from attune.pairs.opposite_emotion import draw_examples

MATCHES = ("post", "source", "topic_and_talk", "topic", "talk", "none")
"""What chosen and rejected have in common, the closest first: the first two without ratings, the next three with."""
CHOSEN = {"high": True, "low": False, "adherent": True, "non-adherent": False}

Key = tuple[str, str | None, str | None]
"""A match, and the topic, source or post and the client's talk type that must be equal."""
Pool = Mapping[Key, Sequence[Example]]


@dataclass(frozen=True)
class MatchedPair(Pair):
    """A pair of counselling, and what its two replies have in common, one of `MATCHES`."""

    match: str


def sides(examples: Sequence[Example], adherence: Mapping[str, str]) -> tuple[list[Example], list[Example]]:
    """The examples whose reply can be chosen, and those whose reply can be rejected, each in order of the ids.

    Args:
        examples: with the quality of their session or, if the corpus has none, the act of the reply.
        adherence: act to adherent, non-adherent or neither, which is on neither side.

    Raises:
        DataError: an act of an example without quality is not in the table.
    """
    acts = Counter(example.act for example in examples if example.quality is None and example.act)
    require_known(Counter({act: count for act, count in acts.items() if act not in adherence}), "pairs.table")
    by_side: dict[bool | None, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: e.id):
        by_side[CHOSEN.get(example.quality or adherence.get(example.act or "", ""))].append(example)
    return by_side[True], by_side[False]


def group_by_match(rejected: Iterable[Example]) -> Pool:
    """The candidates of every match, in order of their ids, so that the order of the input does not matter."""
    pool: dict[Key, list[Example]] = defaultdict(list)
    for example in sorted(rejected, key=lambda e: e.id):
        for key in match_keys(example):
            pool[key].append(example)
    return pool


def counselling_pairs(examples: Iterable[Example], pool: Pool, *, seed: int, epoch: int) -> list[MatchedPair]:
    """The pairs of one epoch, in order of the example ids.

    Args:
        examples: those of `sides` whose reply can be chosen.
        pool: `group_by_match` of those whose reply can be rejected.
        seed: of the run.
        epoch: from 1 in training; 0 for held-out pairs.

    Returns:
        One pair an example; none for an example whose target is the only text of all its matches.
    """
    pairs: list[MatchedPair] = []
    waiting = [(match_keys(example), example) for example in examples]
    while waiting:
        groups: dict[Key, list[tuple[list[Key], Example]]] = defaultdict(list)
        for keys, example in waiting:
            groups[keys[0]].append((keys[1:], example))
        waiting = []
        for key, group in groups.items():
            drawn = draw_examples([example for _, example in group], pool.get(key, ()), seed, epoch)
            for (farther, example), rejected in zip(group, drawn, strict=True):
                if rejected:
                    pairs.append(matched_pair(example, rejected, epoch, key[0]))
                elif farther:
                    waiting.append((farther, example))
    return sorted(pairs, key=lambda pair: pair.id)


def matched_pair(example: Example, rejected: Example, epoch: int, match: str) -> MatchedPair:
    """The pair of an example and the one whose target is rejected."""
    texts = (example.context, example.target, rejected.target)
    return MatchedPair(example.id, epoch, *texts, example.label, rejected.label, rejected.id, match=match)


def match_counts(pairs: Sequence[MatchedPair]) -> dict[str, float]:
    """For each match its percentage of the pairs, `match_<name>`, and their number, `match_<name>_pairs`."""
    counts = Counter(pair.match for pair in pairs)
    shares = {f"match_{name}": round(100 * counts[name] / len(pairs), 4) for name in MATCHES}
    return shares | {f"match_{name}_pairs": counts[name] for name in MATCHES}


def match_keys(example: Example) -> list[Key]:
    """The matches of an example, the closest first.

    Without ratings, the label is the source of the post, and many replies answer the same post. A client's turn without
    a talk type does not match any other by it.
    """
    label, talk = example.label, example.context[-1].act
    if example.quality is None:
        post = split_system(example.context)[1][0].text
        return [("post", normalise(post), None), ("source", label, None), ("none", None, None)]
    if talk is None:
        return [("topic", label, None), ("none", None, None)]
    return [("topic_and_talk", label, talk), ("topic", label, None), ("talk", None, talk), ("none", None, None)]
