"""Generate the embedded sample of EPITOME annotations from data/sample/epitome_phrases.yaml.

`python -m attune sample epitome` writes data/sample/epitome/<mechanism>-reddit.csv, in the columns of the published
annotations. A response consists of sentences that each have a mechanism and a level, or none, so that levels and
rationales follow from the text. The same phrases and seed give the same bytes.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from attune.tools.sample_data.dialogues import load_phrases, sentence_case
from attune.tools.sample_data.files import write_files

SEED = 20
POSTS = 200
# Posts with a second response, so that a split by post matters.
ANSWERED_TWICE = 40
# Weights of a mechanism being absent, weak and strong in a response.
SHARES = (5, 2, 3)
HEADER = ("sp_id", "rp_id", "seeker_post", "response_post", "level", "rationales")
FILES = ("emotional-reactions-reddit.csv", "interpretations-reddit.csv", "explorations-reddit.csv")

Phrases = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """A post and a response; for each mechanism its level and its sentences."""

    seeker: str
    response: str
    levels: tuple[int, ...]
    rationales: tuple[tuple[str, ...], ...]


def draw_pair(phrases: Phrases, number: int, answer: int) -> Pair:
    """Response `answer` to post `number`, from random streams for the post and for the response."""
    rng = random.Random(f"{SEED}:{number}")
    topic = phrases["topics"][number % len(phrases["topics"])]
    fills = {name: rng.choice(values) for name, values in topic["slots"].items()}
    post = _filled(rng.choice(topic["posts"]), fills)
    rng = random.Random(f"{SEED}:{number}:{answer}")
    levels = tuple(rng.choices(range(3), weights=SHARES, k=len(FILES)))
    pools = (
        (phrases["react"]["weak"], phrases["react"]["strong"]),
        (phrases["interpret"]["weak"], topic["interpret"]),
        (phrases["explore"]["weak"], topic["explore"]),
    )
    rationales = []
    for level, pool in zip(levels, pools, strict=True):
        # Sometimes two sentences have a mechanism.
        chosen = rng.sample(pool[level - 1], 2 if rng.random() < 0.15 else 1) if level else []
        rationales.append(tuple(_filled(sentence, fills) for sentence in chosen))
    plain = [
        _filled(sentence, fills) for sentence in rng.sample(phrases["plain"] + topic["advice"], rng.choice((1, 1, 2)))
    ]
    sentences = [*plain, *(sentence for chosen in rationales for sentence in chosen)]
    rng.shuffle(sentences)
    return Pair(post, " ".join(sentences), levels, tuple(rationales))


def make_pairs(phrases: Phrases) -> list[tuple[str, str, Pair]]:
    """All pairs with the ids of post and response."""
    answers = [(number, answer) for answer in range(2) for number in range(POSTS if answer == 0 else ANSWERED_TWICE)]
    return [
        (f"s{number:03}", f"r{number:03}{answer}", draw_pair(phrases, number, answer)) for number, answer in answers
    ]


def make_files(phrases: Phrases) -> dict[str, str]:
    """The text of each mechanism's file, by its name."""
    pairs = make_pairs(phrases)
    files = {}
    for mechanism, name in enumerate(FILES):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        for post, answer, pair in pairs:
            marked = "".join(f"{part}|" for part in pair.rationales[mechanism])
            writer.writerow((post, answer, pair.seeker, pair.response, pair.levels[mechanism], marked))
        files[name] = text.getvalue()
    return files


def write_sample(phrases_path: Path, folder: Path) -> None:
    """Write the three files into a folder."""
    write_files(make_files(load_phrases(phrases_path)), folder)


def _filled(sentence: str, fills: Mapping[str, str]) -> str:
    return sentence_case(Template(sentence).substitute(fills))
