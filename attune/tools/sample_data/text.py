"""Phrases with blanks and alternatives, and the small rules by which they become turns."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from ruamel.yaml import YAML

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


def chosen(text: str, rng: random.Random) -> str:
    """Draw one of the alternatives of each `{a|b}` in a text; one of them may be empty."""
    drawn = re.sub(r"\{([^{}]*)\}", lambda match: rng.choice(match[1].split("|")), text)
    return re.sub(r" +(?=[ ,.?!])", "", drawn).strip()


def draw_fills(scene: Phrases, rng: random.Random) -> dict[str, str]:
    """Draw a fill for each slot of a scene, and what it is about."""
    return fill_about(scene, {name: rng.choice(values) for name, values in scene["slots"].items()}, rng)


def fill_about(scene: Phrases, fills: Fills, rng: random.Random) -> dict[str, str]:
    """Add what a scene is about to the fills of its slots; what was "a dog" when first told is "that dog" later."""
    about = Template(rng.choice(scene["about"])).substitute(fills)
    return {**fills, "about": re.sub(r"^an? ", "that ", about)}


def filled(text: str, fills: Fills) -> str:
    """Fill the blanks of a text, and capitalise its sentences."""
    return sentence_case(Template(text).substitute(fills))


def listener_line(text: str, fills: Fills) -> str:
    """`filled` for the listener; the fills, and not the line, are rewritten in the second person."""
    return filled(text, {name: as_listener(value) for name, value in fills.items()})


def normalised(text: str) -> str:
    """A text without case, punctuation and spacing; equal results are the same text."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))
