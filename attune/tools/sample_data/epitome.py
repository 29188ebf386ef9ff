"""Generate the embedded sample of EPITOME annotations from data/sample/epitome_phrases.yaml and replies.yaml.

`python -m attune sample epitome` writes data/sample/epitome/<mechanism>-reddit.csv, in the columns of the published
annotations. The responses are of the same kind as the last replies of the sample corpus, to posts about other
situations, and without the clauses that the corpus keeps for valid and test. Levels and rationales follow from their
clauses. The same phrases and seed give the same bytes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from attune.runtime.io import csv_text
from attune.tools.sample_data.files import write_files
from attune.tools.sample_data.replies import FILE, Reply, draw_reply
from attune.tools.sample_data.text import Phrases, fill_about, filled, load_phrases

SEED = 20
# Posts of each emotion; the first of them have a second response, so that a split by post matters.
POSTS, ANSWERED_TWICE = 18, 2
HEADER = ("sp_id", "rp_id", "seeker_post", "response_post", "level", "rationales")
FILES = {
    "er": "emotional-reactions-reddit.csv",
    "ip": "interpretations-reddit.csv",
    "ex": "explorations-reddit.csv",
}


@dataclass(frozen=True)
class Pair:
    """A post and a response, with their ids."""

    post_id: str
    response_id: str
    post: str
    response: Reply


def draw_pair(situations: Phrases, clauses: Phrases, emotion: str, number: int, answer: int) -> Pair:
    """Response `answer` to post `number` of an emotion, from random streams for its posts and for the response."""
    situation = situations[emotion]
    names = list(situation["slots"])
    posts = list(product(situation["posts"], *situation["slots"].values()))
    random.Random(f"{SEED}:{emotion}").shuffle(posts)
    text, *values = posts[number]
    fills = fill_about(situation, dict(zip(names, values, strict=True)), random.Random(f"{SEED}:{emotion}:{number}"))
    post = filled(text, fills)
    response = draw_reply(clauses, emotion, fills, random.Random(f"{SEED}:{emotion}:{number}:{answer}"))
    return Pair(f"{emotion}{number:02}", f"{emotion}{number:02}{answer}", post, response)


def make_pairs(situations: Phrases, clauses: Phrases) -> list[Pair]:
    """All pairs, in rounds with a post per emotion, and the second responses at the end."""
    answers = [(number, answer) for answer in range(2) for number in range(ANSWERED_TWICE if answer else POSTS)]
    return [
        draw_pair(situations, clauses, emotion, number, answer) for number, answer in answers for emotion in situations
    ]


def make_files(situations: Phrases, clauses: Phrases) -> dict[str, str]:
    """The text of each mechanism's file, by its name."""
    pairs = make_pairs(situations, clauses)
    files = {}
    for mechanism, name in FILES.items():
        rows = []
        for pair in pairs:
            reply = pair.response
            marked = "".join(f"{sentence}|" for sentence in reply.rationales(mechanism))
            rows.append((pair.post_id, pair.response_id, pair.post, reply.text, reply.levels[mechanism], marked))
        files[name] = csv_text(HEADER, rows)
    return files


def write_sample(phrases_path: Path, folder: Path) -> None:
    """Write the three files into a folder."""
    write_files(make_files(load_phrases(phrases_path), load_phrases(phrases_path.with_name(FILE))), folder)
