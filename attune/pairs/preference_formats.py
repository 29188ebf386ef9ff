"""TRL's preference formats: a row to a pair.

| columns | as text | as messages |
|---|---|---|
| prompt, chosen, rejected | three texts | a list of messages that ends with the user's, and two replies |
| chosen, rejected | two texts with a common beginning, the prompt | two conversations that differ in the last message |

A text as prompt is the user's turn. A common beginning of two texts ends before the first word that differs. System
messages become one turn before the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from attune.data.chat import read_turn, text_or_number
from attune.data.dialogue import Turn, join_turns
from attune.data.pair import Pair
from attune.runtime.errors import DataError
from attune.runtime.io import require_utf8
from attune.runtime.records import shown

# Optional columns of text, as the fields of a pair.
TEXTS = ("label", "rejected_label", "rejected_id")


def read_pair(row: Mapping[str, Any], where: str, default_id: str) -> Pair:
    """The pair of a row, by the format that its columns show.

    Optional columns: `id`, a text or integer; `epoch`, an integer from 1, else the pair has 0; `label`,
    `rejected_label`, `rejected_id`, texts. Others are not read. Texts are without outer white space, and may be empty.

    Args:
        row: of the file.
        where: it stands, for errors.
        default_id: of a row without an id.

    Raises:
        DataError: the row fits no format; names `where`.
    """
    prompt, chosen, rejected = split_prompt(row, where)
    texts = [str(row.get(name) or "") for name in TEXTS]
    for name in TEXTS:
        if not isinstance(row.get(name), str | None):
            refuse(where, f"{name} should be a text, found {shown(row[name])}")
    name = default_id if row.get("id") is None else text_or_number(row["id"], f"{where}: id", DataError)
    pair = Pair(name, _epoch(row, where), prompt, chosen, rejected, *texts)
    for text in (chosen, rejected, *texts, *(turn.text for turn in prompt)):
        require_utf8(text, where, DataError)
    return pair


def split_prompt(row: Mapping[str, Any], where: str) -> tuple[tuple[Turn, ...], str, str]:
    """The context, and the texts of the chosen and the rejected reply.

    Raises:
        DataError: as `read_pair`.
    """
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if value is None:
            refuse(where, f"no {name}; found {', '.join(map(str, row)) or 'nothing'}")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            prompt, chosen, rejected = without_common_words(chosen, rejected, where)
        return context_of(prompt, where), chosen.strip(), rejected.strip()
    sides = [turns_of(value, name, where) for name, value in (("chosen", chosen), ("rejected", rejected))]
    # Where the two conversations begin with the user, the prompt stands in both, also if a column repeats it.
    if prompt is None or (isinstance(prompt, str) and sides[0][0].role != "assistant"):
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*sides, strict=False)))
        # Equal conversations differ in nothing: their last message is the reply, and the pair is left out later.
        common = min(common, *(len(side) - 1 for side in sides))
        context, sides = checked(sides[0][:common], where), [side[common:] for side in sides]
    else:
        context = context_of(prompt, where)
    return context, reply_of(sides[0], "chosen", where), reply_of(sides[1], "rejected", where)


def without_common_words(chosen: str, rejected: str, where: str) -> tuple[str, str, str]:
    """The common beginning of two texts, up to the first word that differs, and what follows it in each.

    Raises:
        DataError: they begin with different words.
    """
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    while common and not (chosen[common - 1].isspace() or common == len(chosen) == len(rejected)):
        common -= 1
    if not chosen[:common].strip():
        refuse(where, "no prompt, and chosen and rejected have no common beginning: add a column prompt")
    return chosen[:common], chosen[common:], rejected[common:]


def context_of(prompt: Any, where: str) -> tuple[Turn, ...]:
    """The context of a column prompt: a text, which is the user's turn, or messages.

    Raises:
        DataError: it is neither, or does not end with the user's turn.
    """
    if isinstance(prompt, str):
        return (Turn("user", prompt.strip()),)
    return checked(turns_of(prompt, "prompt", where), where)


def checked(turns: Sequence[Turn], where: str) -> tuple[Turn, ...]:
    """Alternating turns up to the user's last, after one system turn with the text of all system messages, if any.

    Raises:
        DataError: the last turn is not the user's.
    """
    system = [turn.text for turn in turns if turn.role == "system" and turn.text]
    spoken = join_turns(turn for turn in turns if turn.role != "system")
    if not spoken or spoken[-1].role != "user":
        last = f"ends with a message of the {turns[-1].role}" if turns else "is empty"
        refuse(where, f"the prompt {last}: the last message before the reply is the user's")
    return (*([Turn("system", "\n\n".join(system))] if system else []), *spoken)


def turns_of(value: Any, name: str, where: str) -> list[Turn]:
    """The messages of a column as turns.

    Raises:
        DataError: it is no list of messages, or one of them has no role or no text.
    """
    if not isinstance(value, list):
        refuse(where, f"{name} is {shown(value)}: prompt, chosen and rejected are all texts or all lists of messages")
    turns = [
        read_turn(message, f"{where}: message {number} of {name}", DataError, empty=True)
        for number, message in enumerate(value, start=1)
    ]
    if not turns:
        refuse(where, f"{name} holds no message")
    return turns


def reply_of(turns: Sequence[Turn], name: str, where: str) -> str:
    """The text of a side's one message.

    Raises:
        DataError: there are several, or it is not the assistant's.
    """
    if len(turns) > 1:
        refuse(where, f"{name} has {len(turns)} messages after the prompt: a reply is one message of the assistant")
    if turns[0].role != "assistant":
        refuse(where, f"{name} is a message of the {turns[0].role}: a reply is one message of the assistant")
    return turns[0].text


def _epoch(row: Mapping[str, Any], where: str) -> int:
    value = row.get("epoch", 0)
    if "epoch" in row and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31):
        refuse(where, f"epoch is {shown(value)}, no integer from 1")
    return value


def refuse(where: str, problem: str) -> NoReturn:
    """Raise the error of a row."""
    raise DataError(f"{where}: {problem}")
