"""Chat messages of other programs as turns: those of chat APIs, of ShareGPT, and this pipeline's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attune.data.dialogue import Role, Turn
from attune.runtime.io import require_utf8
from attune.runtime.records import shown

ROLE_KEYS = ("role", "from")
TEXT_KEYS = ("content", "value", "text")
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


def read_turn(
    message: Any,
    where: str,
    error: type[Exception],
    role: str | None = None,
    content: str | None = None,
    empty: bool = False,
) -> Turn:
    """The turn of a message, its text without outer white space; of a content in parts a line for each part.

    Args:
        message: with a role, a text, and perhaps an act.
        where: it stands.
        error: the class to raise.
        role: key of the role; None: one of `ROLE_KEYS`.
        content: key of the text; None: one of `TEXT_KEYS`.
        empty: whether the text may be empty.

    Raises:
        Exception: `error`: it is no message, its role is none of `ROLES`, it has something else than text, or half of a
            surrogate pair.
    """
    if not isinstance(message, Mapping):
        raise error(f"{where}: expected an object with role and content, found {shown(message)}")
    speaker = _of_key(message, role, ROLE_KEYS, where, error)
    known = ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if known is None:
        raise error(
            f"{where}: role {shown(speaker)} is none of {', '.join(ROLES)}; calls of tools and their results are not "
            "read: leave such turns out"
        )
    text = _of_key(message, content, TEXT_KEYS, where, error)
    if isinstance(text, list):
        text = _text_of_parts(text, where, error)
    if not isinstance(text, str) or not (empty or text.strip()):
        raise error(f"{where}: the text of {speaker} should not be empty, found {shown(text)}")
    require_utf8(text, where, error)
    act = message.get("act")
    if act is not None and not isinstance(act, str):
        raise error(f"{where}: act should be a text, found {shown(act)}")
    return Turn(known, text.strip(), act or None)


def _of_key(
    message: Mapping[str, Any], named: str | None, usual: tuple[str, ...], where: str, error: type[Exception]
) -> Any:
    keys = (named,) if named else usual
    key = next((key for key in keys if key in message), None)
    if key is None:
        raise error(f"{where}: no key {' or '.join(keys)}; found {', '.join(map(str, message)) or 'nothing'}")
    return message[key]


def _text_of_parts(parts: list[Any], where: str, error: type[Exception]) -> str:
    """The text of a content in parts, `[{"type": "text", "text": …}]`."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text" or not isinstance(part.get("text"), str):
            raise error(f"{where}: a part of the content is {shown(kind)}: only parts of type text can be read")
        texts.append(part["text"])
    return "\n".join(texts)


def text_or_number(value: Any, what: str, error: type[Exception]) -> str:
    """A text, or a whole number as text, such as an id.

    Raises:
        Exception: `error`: it is neither, or empty, or has half of a surrogate pair.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise error(f"{what} should be a text or a whole number, found {shown(value)}")
    require_utf8(str(value), what, error)
    return str(value).strip()
