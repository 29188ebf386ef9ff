"""Generate the embedded sample corpus, in the format of EmpatheticDialogues, from data/sample/phrases.yaml.

`python -m attune sample dialogues` writes data/sample/empatheticdialogues/{train,valid,test}.csv. The same phrases and
seed give the same bytes, so the files can be committed and checked.
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
SHAPES = (4, 4, 4, 5, 6)  # numbers of turns, drawn uniformly
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
    """A dialogue: the emotion label, the situation line and the turns, starting with the speaker's."""

    emotion: str
    prompt: str
    turns: tuple[str, ...]


def load_phrases(path: Path) -> Phrases:
    """Read a file of phrases."""
    phrases: Phrases = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return phrases


def as_listener(text: str) -> str:
    """Rewrite a speaker's phrase in the second person: `my sister` becomes `your sister`."""
    return re.sub(r"[A-Za-z']+", lambda match: LISTENER_WORDS.get(match[0].lower(), match[0]), text)


def sentence_case(text: str) -> str:
    """Capitalise the first letter of each sentence."""
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def with_opener(opener: str, text: str) -> str:
    """Put an opener before a turn, whose first letter becomes lower case unless its first word is I."""
    if not opener:
        return text
    keeps_capital = re.match(r"I\b", text) is not None
    return f"{opener} {text if keeps_capital else text[:1].lower() + text[1:]}"


def fill_frame(frame: Phrases, rng: random.Random) -> dict[str, str]:
    """Draw a fill for each slot of a frame, and fill the phrases for the whole frame (`thing`, `event`)."""
    fills = {name: rng.choice(values) for name, values in frame["slots"].items()}
    whole = {role: Template(frame[role]).substitute(fills) for role in ("thing", "event")}
    return fills | whole


def speaker_line(text: str, fills: Fills) -> str:
    """Fill a turn of the speaker."""
    return sentence_case(Template(text).substitute(fills))


def listener_line(text: str, fills: Fills) -> str:
    """Fill a turn of the listener; the fills, and not the line, are rewritten in the second person."""
    return sentence_case(Template(text).substitute({name: as_listener(value) for name, value in fills.items()}))


def draw_dialogue(phrases: Phrases, emotion: str, frame: Phrases, rng: random.Random) -> Dialogue:
    """Draw a dialogue about a frame of an emotion."""
    material = phrases["emotions"][emotion]
    fills = fill_frame(frame, rng)
    length = rng.choice(SHAPES)
    opener = rng.choice(phrases["openers"][material["mood"]])
    turns = [with_opener(opener, speaker_line(rng.choice(frame["open"]), fills))]
    # In the order of the file, since a question can build on an earlier one.
    places = sorted(rng.sample(range(len(material["exchanges"])), 2 if length == 6 else 1))
    for exchange in (material["exchanges"][place] for place in places):
        turns.append(listener_line(exchange["listener"], fills))
        turns.append(speaker_line(rng.choice(exchange["speaker"]), fills))
    turns.append(listener_line(rng.choice(material["last"] + frame["reply"]), fills))
    if length == 5:
        turns.append(speaker_line(rng.choice(material["close"]), fills))
    return Dialogue(emotion, speaker_line(frame["situation"], fills), tuple(turns))


def normalised(turns: tuple[str, ...]) -> str:
    """The text of a dialogue without case, punctuation and spacing; equal texts are the same dialogue."""
    return " ".join(re.findall(r"[a-z0-9']+", " ".join(turns).lower()))


def draw_unseen(draw: Callable[[int], Dialogue], seen: set[str]) -> Dialogue:
    """Draw until the text is not in `seen`, and add it."""
    for attempt in range(ATTEMPTS):
        dialogue = draw(attempt)
        key = normalised(dialogue.turns)
        if key not in seen:
            seen.add(key)
            return dialogue
    raise ValueError(f"{ATTEMPTS} draws gave no new dialogue for {dialogue.emotion}: add phrases to it")


def make_dialogues(phrases: Phrases) -> list[Dialogue]:
    """All dialogues in rounds with a dialogue per emotion, so that a split is a contiguous range."""
    seen: set[str] = set()
    dialogues = []
    for number in range(sum(SPLITS.values())):
        for emotion, material in phrases["emotions"].items():
            # Frames alternate, so that each is in each split.
            frame = material["frames"][number % len(material["frames"])]

            def draw(attempt: int, emotion: str = emotion, frame: Phrases = frame, number: int = number) -> Dialogue:
                # A random stream for each draw, so that new phrases for one emotion do not change the others.
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
    """Write the three files of the sample corpus to `out`."""
    files = make_files(load_phrases(phrases_path))
    write_files({f"{split}.csv": text for split, text in files.items()}, out / "empatheticdialogues")
