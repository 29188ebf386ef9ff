"""A language model that plays the person of a script: what it is asked, and what its answers say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import Template

from attune.scoring.converse.seeker import LENGTH, Conversation, Script

PLACES = {"emotion", "distress", "story", "conversation"}
"""The placeholders of the prompt."""
NAMES = {"user": "You", "assistant": "Supporter"}
TURN = re.compile(rf"^\s*(?:{'|'.join(NAMES.values())}):", re.MULTILINE)
OWN = re.compile(rf"\s*{NAMES['user']}:")
QUOTES = '"\u201c\u201d'


def prompt(template: Template, one: Conversation) -> str:
    """The text that asks for the next message of a person.

    Args:
        template: of the prompt, with `PLACES`.
        one: ends with a reply. Its script is what the person has to tell; the distress is that of the rules.
    """
    return template.substitute(
        emotion=one.script.emotion,
        distress=one.states[-1],
        story="\n".join(one.script.turns),
        conversation="\n".join(f"{NAMES[turn.role]}: {turn.text}" for turn in one.turns),
    )


def message(answer: str | None) -> str | None:
    """The message in an answer; None if it is empty, or begins with a turn of the supporter.

    Models put a name before it or quotes around it, and go on with the supporter's next turn, which is left out.
    """
    text = answer or ""
    name = OWN.match(text)
    said = TURN.split(text[name.end() :] if name else text)[0]
    return " ".join(said.split()).strip(QUOTES).strip() or None


def longest(template: Template, scripts: Sequence[Script], reply: int, answer: int) -> list[str]:
    """Texts as long as the longest that can be asked for the messages of the scripts, of which the cost is estimated.

    Args:
        template: of the prompt.
        scripts: N.
        reply: the characters of the longest reply.
        answer: the characters of the longest message.
    """
    grown = [" " * (place * reply + (place - 1) * answer) for place in range(1, LENGTH)]
    return [prompt(template, Conversation(script)) + more for script in scripts for more in grown]
