"""An instruction before a conversation: a system turn if the chat template has one, else a prefix of the user turn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.data.dialogue import Dialogue, Turn, add_system, join_system, split_system
from attune.models.chat_template import encode_prompt, fit_context, has_system_turn
from attune.runtime.errors import TemplateError, UserError
from attune.runtime.io import read_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def read_instruction(path: Path, key: str = "a variant") -> str:
    """The text of an instruction file, without outer white space.

    Args:
        path: of the file.
        key: the section that names it, for the errors.

    Raises:
        UserError: the file is missing, not UTF-8 or empty.
    """
    text = "\n".join(read_lines(path, UserError, f"{key} names it as its instruction")).strip()
    if not text:
        raise UserError(f"{path}, the instruction of {key}, is empty: `instruction: data/dialogues` gives none")
    return text


def fit_instructed(
    tokenizer: Tokenizer, context: Sequence[Turn], instruction: str | None, max_length: int
) -> tuple[Turn, ...]:
    """`instruction` and `context`, truncated to `max_length` tokens by `fit_context`; the instruction is never cut.

    Raises:
        TemplateError: the instruction leaves no room for a single character.
    """
    fitted = fit_context(tokenizer, context, max_length)
    if instruction is None:
        return fitted
    instructed = instruct(tokenizer, fitted, instruction)
    # The tokens of instruction and context together may be one more or less than the sum of both: hence the loop.
    while (excess := _length(tokenizer, instructed) - max_length) > 0:
        room = _length(tokenizer, fitted) - excess
        try:
            fitted = fit_context(tokenizer, fitted, room)
        except TemplateError:
            raise TemplateError(
                f"the instruction leaves {max(0, room)} of {max_length} tokens for the conversation: shorten it, or "
                "raise generate.max_length"
            ) from None
        instructed = instruct(tokenizer, fitted, instruction)
    return instructed


def tell_joined(tokenizer: Tokenizer, dialogues: Sequence[Dialogue]) -> None:
    """Say how many system turns the chat template, which has none, makes part of user turns."""
    with_system = sum(bool(split_system(dialogue.turns)[0]) for dialogue in dialogues)
    if with_system and not has_system_turn(tokenizer, tokenizer.chat_template):
        print(f"the chat template has no system turn: those of {with_system} dialogues begin their first user turns")


def instruct(tokenizer: Tokenizer, context: Sequence[Turn], instruction: str) -> tuple[Turn, ...]:
    """`context` with `instruction` before it, and before the text of its system turn, if it has one."""
    instructed = add_system(context, instruction)
    return instructed if has_system_turn(tokenizer, tokenizer.chat_template) else join_system(instructed)


def _length(tokenizer: Tokenizer, context: Sequence[Turn]) -> int:
    return len(encode_prompt(tokenizer, context, sys.maxsize))
