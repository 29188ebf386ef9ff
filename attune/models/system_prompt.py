"""An instruction before a conversation: a system turn where the template has one, else before the user's words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from attune.data.dialogue import Role, Turn
from attune.models.chat_template import MARK, encode_prompt, fit_context, render
from attune.runtime.errors import TemplateError, UserError
from attune.runtime.io import read_lines

SIDES: tuple[Role, Role] = ("user", "assistant")

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def read_instruction(path: Path) -> str:
    """The text of an instruction, without outer white space.

    Raises:
        UserError: the file is missing, is no UTF-8, or says nothing.
    """
    text = "\n".join(read_lines(path, UserError, "variants name it as the instruction of one")).strip()
    if not text:
        raise UserError(f"{path}, the instruction of a variant, is empty: `instruction: data/dialogues` gives none")
    return text


def fit_instructed(
    tokenizer: Tokenizer, context: Sequence[Turn], instruction: str | None, max_length: int
) -> tuple[Turn, ...]:
    """`fit_context` with `instruction` before what is left of the context; the instruction itself is never cut.

    Raises:
        TemplateError: the instruction leaves no room for even one word.
    """
    fitted = fit_context(tokenizer, context, max_length)
    if instruction is None:
        return fitted
    instructed = instruct(tokenizer, fitted, instruction)
    # Where the two join, a tokeniser may write a token more or less than it does for each: hence the loop.
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


def instruct(tokenizer: Tokenizer, context: Sequence[Turn], instruction: str) -> tuple[Turn, ...]:
    """`context`, which a user opens, with `instruction` before it."""
    first, *rest = context
    if has_system_turn(tokenizer, tokenizer.chat_template):
        return (Turn("system", instruction), first, *rest)
    return (Turn(first.role, f"{instruction}\n\n{first.text}"), *rest)


@lru_cache(maxsize=16)
def has_system_turn(tokenizer: Tokenizer, template: str) -> bool:
    """Whether `template`, the tokenizer's, writes a system turn, and writes it otherwise than a turn of either side.

    Gemma's refuses one; others leave it out, or write it as one more turn of a side, which no model has learnt from.
    """
    system = _opened_by(tokenizer, "system")
    return system is not None and MARK in system and system not in {_opened_by(tokenizer, r) for r in SIDES}


def _opened_by(tokenizer: Tokenizer, role: Role) -> str | None:
    """The text of a user's turn behind a turn of `role`; None where the template refuses that."""
    from jinja2 import TemplateError as Refusal

    try:
        return render(tokenizer, [Turn(role, MARK), Turn("user", "a")])
    except Refusal:
        return None


def _length(tokenizer: Tokenizer, context: Sequence[Turn]) -> int:
    return len(encode_prompt(tokenizer, context, sys.maxsize))
