"""Generate the embedded sample corpus, in the format of EmpatheticDialogues, from data/sample/phrases.yaml.

`python -m attune sample dialogues` writes data/sample/empatheticdialogues/{train,valid,test}.csv, whose last replies
come from data/sample/replies.yaml, and their levels of empathy, data/sample/reply_levels.csv. The same phrases and seed
give the same bytes, so the files can be committed and checked.
"""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import NamedTuple

from attune.tools.sample_data.files import write_files
from attune.tools.sample_data.replies import FILE, SHARES, Reply, draw_reply
from attune.tools.sample_data.text import (
    Phrases,
    draw_fills,
    filled,
    listener_line,
    load_phrases,
    normalised,
    with_opener,
)

SEED = 20
SPLITS = {"train": 60, "valid": 8, "test": 20}  # dialogues per emotion
HEADER = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags"
LEVELS = "reply_levels.csv"
SHAPES = (4, 4, 4, 4, 5, 6)  # numbers of turns, drawn uniformly
ATTEMPTS = 200


class Dialogue(NamedTuple):
    """A dialogue: emotion label, situation line, turns from the speaker's first, and the reply that is the target."""

    emotion: str
    prompt: str
    turns: tuple[str, ...]
    target: Reply


def draw_dialogue(phrases: Phrases, clauses: Phrases, emotion: str, number: int, attempt: int) -> Dialogue:
    """Draw dialogue `number` of an emotion, from a random stream for this draw alone."""
    rng = random.Random(f"{SEED}:{emotion}:{number}:{attempt}")
    material = phrases["emotions"][emotion]
    # Frames alternate, so that each is in each split.
    frame = material["frames"][number % len(material["frames"])]
    scene = phrases["scenes"][frame["scene"]] if "scene" in frame else frame
    fills = draw_fills(scene, rng)
    length = rng.choice(SHAPES)
    opener = rng.choice(phrases["openers"][material["mood"]])
    turns = [with_opener(opener, filled(rng.choice(frame["open"]), fills))]
    # In the order of the file, since a question can build on an earlier one.
    places = sorted(rng.sample(range(len(material["exchanges"])), 2 if length == 6 else 1))
    for exchange in (material["exchanges"][place] for place in places):
        turns += [listener_line(exchange["listener"], fills), filled(rng.choice(exchange["speaker"]), fills)]
    target = draw_reply(clauses, emotion, fills, rng)
    turns.append(target.text)
    if length == 5:
        turns.append(filled(rng.choice(material["close"]), fills))
    return Dialogue(emotion, filled(frame["situation"], fills), tuple(turns), target)


def draw_unseen(phrases: Phrases, clauses: Phrases, emotion: str, number: int, seen: set[str]) -> Dialogue:
    """Draw until neither the dialogue nor its target is in `seen`, and add them."""
    for attempt in range(ATTEMPTS):
        dialogue = draw_dialogue(phrases, clauses, emotion, number, attempt)
        keys = {normalised(" ".join(dialogue.turns)), normalised(dialogue.target.text)}
        if not keys & seen:
            seen |= keys
            return dialogue
    raise ValueError(f"{ATTEMPTS} draws gave no new dialogue for {emotion}: add phrases to it")


def make_dialogues(phrases: Phrases, clauses: Phrases) -> dict[str, list[Dialogue]]:
    """The dialogues of each split, in rounds with a dialogue per emotion.

    What is new is judged within an emotion, so that another phrase for one of them leaves the others as they are.
    """
    seen: dict[str, set[str]] = {emotion: set() for emotion in phrases["emotions"]}
    dialogues: dict[str, list[Dialogue]] = {}
    number = 0
    for split, per_emotion in SPLITS.items():
        dialogues[split] = [
            draw_unseen(phrases, clauses, emotion, n, seen[emotion])
            for n in range(number, number + per_emotion)
            for emotion in phrases["emotions"]
        ]
        number += per_emotion
    return dialogues


def conversation_id(number: int) -> str:
    """The id of a dialogue in the corpus, from its number, starting at 1."""
    return f"hit:{number // 2}_conv:{number}"


def format_rows(number: int, dialogue: Dialogue) -> list[str]:
    """The rows of a dialogue; the format has no quotes, so a comma in the text is written `_comma_`."""
    rows = []
    for index, turn in enumerate(dialogue.turns, start=1):
        prompt, text = (part.replace(",", "_comma_") for part in (dialogue.prompt, turn))
        rows.append(f"{conversation_id(number)},{index},{dialogue.emotion},{prompt},{index % 2},{text},,")
    return rows


def make_files(phrases: Phrases, clauses: Phrases) -> dict[str, str]:
    """The text of each file, by its path."""
    files = {}
    levels = [",".join(("id", "split", *SHARES))]
    numbers = count(1)
    for split, dialogues in make_dialogues(phrases, clauses).items():
        rows = [HEADER]
        for dialogue in dialogues:
            number = next(numbers)
            rows += format_rows(number, dialogue)
            levels.append(",".join((conversation_id(number), split, *map(str, dialogue.target.levels.values()))))
        files[f"empatheticdialogues/{split}.csv"] = "\n".join([*rows, ""])
    return files | {LEVELS: "\n".join([*levels, ""])}


def write_sample(phrases_path: Path, out: Path) -> None:
    """Write the three files of the sample corpus, and the levels of its targets, to `out`."""
    write_files(make_files(load_phrases(phrases_path), load_phrases(phrases_path.with_name(FILE))), out)
