"""Make the embedded sample corpus: dialogues in the EmpatheticDialogues file format from data/sample/phrases.yaml.

Run `python -m attune sample dialogues` to write data/sample/empatheticdialogues/{train,valid,test}.csv. The same
phrases and seed give the same bytes, so that the written files can be tracked and checked.
"""

import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from attune.tools.sample_data.files import write_files

SEED = 20
SPLITS = {"train": 40, "valid": 5, "test": 5}  # dialogues per emotion
HEADER = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags"
SHAPES = (4, 4, 4, 5, 6)  # numbers of turns, drawn from evenly
ATTEMPTS = 200

Phrases = Mapping[str, Any]
Fills = Mapping[str, str]

LISTENER_WORDS = {
    "my": "your",
    "our": "your",
    "me": "you",
    "us": "you",
    "i": "you",
    "we": "you",
    "i'm": "you're",
    "i've": "you've",
    "i'd": "you'd",
    "i'll": "you'll",
    "myself": "yourself",
}


class Dialogue(NamedTuple):
    """One conversation: the emotion label, the situation line and the turns, the speaker's first."""

    emotion: str
    prompt: str
    turns: tuple[str, ...]


def load_phrases(path: Path) -> Phrases:
    """Read the written material."""
    phrases: Phrases = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return phrases


def as_listener(text: str) -> str:
    """Turn a speaker's phrase to the other person: `my sister` becomes `your sister`."""
    return re.sub(r"[A-Za-z']+", lambda match: LISTENER_WORDS.get(match[0].lower(), match[0]), text)


def sentence_case(text: str) -> str:
    """Put a capital letter at the start of each sentence."""
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def with_opener(opener: str, text: str) -> str:
    """Put an opener before a turn, whose first letter becomes small unless its first word is I."""
    if not opener:
        return text
    keeps_capital = re.match(r"I\b", text) is not None
    return f"{opener} {text if keeps_capital else text[:1].lower() + text[1:]}"


def fill_frame(frame: Phrases, rng: random.Random) -> dict[str, str]:
    """Draw a fill for each slot of a frame, and fill the phrases that stand for the whole of it."""
    fills = {name: rng.choice(values) for name, values in frame["slots"].items()}
    whole = {role: Template(frame[role]).substitute(fills) for role in ("thing", "event")}
    return fills | whole


def speaker_line(text: str, fills: Fills) -> str:
    """Fill a turn of the speaker."""
    return sentence_case(Template(text).substitute(fills))


def listener_line(text: str, fills: Fills) -> str:
    """Fill a turn of the listener; the fills are turned to the other person, the words of the line are not."""
    return sentence_case(Template(text).substitute({name: as_listener(value) for name, value in fills.items()}))


def draw_dialogue(phrases: Phrases, emotion: str, frame: Phrases, rng: random.Random) -> Dialogue:
    """Draw one dialogue about a frame of an emotion."""
    material = phrases["emotions"][emotion]
    fills = fill_frame(frame, rng)
    length = rng.choice(SHAPES)
    opener = rng.choice(phrases["openers"][material["mood"]])
    turns = [with_opener(opener, speaker_line(rng.choice(frame["open"]), fills))]
    # In the written order, since a later question may take an earlier one for granted.
    places = sorted(rng.sample(range(len(material["exchanges"])), 2 if length == 6 else 1))
    for exchange in (material["exchanges"][place] for place in places):
        turns.append(listener_line(exchange["listener"], fills))
        turns.append(speaker_line(rng.choice(exchange["speaker"]), fills))
    turns.append(listener_line(rng.choice(material["last"] + frame["reply"]), fills))
    if length == 5:
        turns.append(speaker_line(rng.choice(material["close"]), fills))
    return Dialogue(emotion, speaker_line(frame["situation"], fills), tuple(turns))


def normalised(turns: tuple[str, ...]) -> str:
    """The text of a dialogue without case, punctuation and spacing, by which two are held to be the same."""
    return " ".join(re.findall(r"[a-z0-9']+", " ".join(turns).lower()))


def draw_unseen(draw: Callable[[int], Dialogue], seen: set[str]) -> Dialogue:
    """Draw until the text is new, and add it to those seen."""
    for attempt in range(ATTEMPTS):
        dialogue = draw(attempt)
        key = normalised(dialogue.turns)
        if key not in seen:
            seen.add(key)
            return dialogue
    raise ValueError(f"{ATTEMPTS} draws gave no new dialogue for {dialogue.emotion}: add phrases to it")


def make_dialogues(phrases: Phrases) -> list[Dialogue]:
    """All dialogues in order: one of each emotion, then the next of each, so that a split is a range of them."""
    seen: set[str] = set()
    dialogues = []
    for number in range(sum(SPLITS.values())):
        for emotion, material in phrases["emotions"].items():
            # By turns and not at random: so each frame is in each split.
            frame = material["frames"][number % len(material["frames"])]

            def draw(attempt: int, emotion: str = emotion, frame: Phrases = frame, number: int = number) -> Dialogue:
                # A string of its own for each draw: adding phrases to one emotion leaves the others as they are.
                return draw_dialogue(phrases, emotion, frame, random.Random(f"{SEED}:{emotion}:{number}:{attempt}"))

            dialogues.append(draw_unseen(draw, seen))
    return dialogues


def format_rows(number: int, dialogue: Dialogue) -> list[str]:
    """The rows of a dialogue; the format has no quotes, so a comma in the text is written `_comma_`."""
    rows = []
    for index, turn in enumerate(dialogue.turns, start=1):
        prompt, text = (part.replace(",", "_comma_") for part in (dialogue.prompt, turn))
        rows.append(f"hit:{number // 2}_conv:{number},{index},{dialogue.emotion},{prompt},{index % 2},{text},,")
    return rows


def make_files(phrases: Phrases) -> dict[str, str]:
    """The text of each split's file, by the name of the split."""
    numbered = list(enumerate(make_dialogues(phrases), start=1))
    files, start = {}, 0
    for split, per_emotion in SPLITS.items():
        end = start + per_emotion * len(phrases["emotions"])
        rows = [row for number, dialogue in numbered[start:end] for row in format_rows(number, dialogue)]
        files[split] = "\n".join([HEADER, *rows]) + "\n"
        start = end
    return files


def write_sample(phrases_path: Path, out: Path) -> None:
    """Write the three files of the sample corpus under a folder."""
    files = make_files(load_phrases(phrases_path))
    write_files({f"{split}.csv": text for split, text in files.items()}, out / "empatheticdialogues")
