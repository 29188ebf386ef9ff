"""Generate the embedded sample of motivational interviewing from data/sample/annomi_phrases.yaml.

`python -m attune sample annomi` writes data/sample/annomi_sample/AnnoMI-simple.csv in the format of AnnoMI's simple
file. Each phrase is written for one behaviour or talk type, so that these can be learnt from the text. Therapists of
high quality mostly reflect and ask open questions, those of low quality mostly advise and confront. The same phrases
and seed give the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from attune.corpora.readers.annomi import SIMPLE
from attune.runtime.io import csv_text
from attune.tools.sample_data.files import write_files
from attune.tools.sample_data.text import as_listener, load_phrases, sentence_case

SEED = 20
TRANSCRIPTS = 60
# Every third transcript is of low quality; every twentieth is from the video of the transcript before it.
LOW_EVERY, SHARED_EVERY = 3, 20
HEADER = (
    "transcript_id",
    "mi_quality",
    "video_title",
    "video_url",
    "topic",
    "utterance_id",
    "interlocutor",
    "timestamp",
    "utterance_text",
    "main_therapist_behaviour",
    "client_talk_type",
)
# The therapist's behaviours, in the order of the session; the first of each step is the usual one.
STEPS = {
    "high": (
        ("question", "reflection"),
        ("reflection", "question"),
        ("question", "other"),
        ("reflection", "therapist_input"),
        ("therapist_input", "other"),
        ("reflection", "question"),
        ("question", "reflection"),
    ),
    "low": (
        ("question", "other"),
        ("therapist_input", "question"),
        ("question", "therapist_input"),
        ("therapist_input", "other"),
        ("other", "reflection"),
        ("therapist_input", "question"),
        ("therapist_input", "other"),
    ),
}
USUAL = 0.8
# The probabilities of change, sustain and neutral in the first and in the second half of a session.
TALK = {"high": ((0.3, 0.5, 0.2), (0.7, 0.15, 0.15)), "low": ((0.35, 0.4, 0.25), (0.15, 0.6, 0.25))}
TALK_TYPES = ("change", "sustain", "neutral")

Phrases = Mapping[str, Any]


class Utterance(NamedTuple):
    """An utterance and its act: a therapist's behaviour or a client's talk type."""

    interlocutor: str
    text: str
    act: str


def quality_of(number: int) -> str:
    """The quality of transcript `number`."""
    return "low" if number % LOW_EVERY == LOW_EVERY - 1 else "high"


def topic_of(phrases: Phrases, number: int) -> str:
    """The topic of transcript `number`; topics alternate, so that each has both qualities."""
    return list(phrases["topics"])[number % len(phrases["topics"])]


def draw_transcript(phrases: Phrases, number: int) -> list[Utterance]:
    """The utterances of transcript `number`, from a random stream for this transcript alone."""
    rng = random.Random(f"{SEED}:{number}")
    quality, topic = quality_of(number), phrases["topics"][topic_of(phrases, number)]
    fills = {slot: rng.choice(values) for slot, values in topic["slots"].items()}
    turned = {slot: as_listener(value) for slot, value in fills.items()}
    used: set[str] = set()

    def new(lines: list[str], fills: Mapping[str, str] = turned) -> str:
        text = rng.choice([line for line in lines if line not in used] or lines)
        used.add(text)
        return sentence_case(Template(text).substitute(fills))

    def therapist(behaviour: str, heard: str) -> Utterance:
        key = heard if behaviour == "reflection" else quality
        lines = topic["therapist"].get(behaviour, {}).get(key, []) + phrases["therapist"][behaviour][key]
        return Utterance("therapist", new(lines), behaviour)

    steps = STEPS[quality][: rng.randint(5, len(STEPS[quality]))]
    utterances = [Utterance("therapist", new(phrases["greet"][quality]), "other")] if rng.random() < 0.9 else []
    utterances.append(Utterance("client", new(topic["open"], fills), "neutral"))
    for i, step in enumerate(steps):
        behaviour = step[0] if rng.random() < USUAL else rng.choice(step[1:])
        utterances.append(therapist(behaviour, utterances[-1].act))
        talk = rng.choices(TALK_TYPES, TALK[quality][2 * i >= len(steps)])[0]
        utterances.append(Utterance("client", new(topic[talk] + phrases["client"][talk], fills), talk))
    utterances.append(Utterance("therapist", new(phrases["close"][quality]), "other"))
    return utterances


def rows_of(phrases: Phrases, number: int) -> list[list[str]]:
    """The rows of transcript `number`."""
    topic, quality = topic_of(phrases, number), quality_of(number)
    video = number - (number % SHARED_EVERY == SHARED_EVERY - 1)
    whole = [quality, f"Practice session {video}", f"https://example.org/annomi_sample/{video}", topic]
    rows, seconds = [], 0
    for index, (interlocutor, text, act) in enumerate(draw_transcript(phrases, number)):
        acts = [act, "n/a"] if interlocutor == "therapist" else ["n/a", act]
        time = f"00:{seconds // 60:02}:{seconds % 60:02}"
        rows.append([str(number), *whole, str(index), interlocutor, time, text, *acts])
        seconds += 1 + len(text.split()) // 2
    return rows


def make_file(phrases: Phrases) -> str:
    """The text of the file."""
    return csv_text(HEADER, (row for number in range(TRANSCRIPTS) for row in rows_of(phrases, number)))


def write_sample(phrases_path: Path, folder: Path) -> None:
    """Write the file into a folder."""
    write_files({SIMPLE: make_file(load_phrases(phrases_path))}, folder)
