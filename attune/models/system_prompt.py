"""An instruction before a conversation: a system turn if the chat template has one, else a prefix of the user turn."""

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

SPEAKERS: tuple[Role, Role] = ("user", "assistant")

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def read_instruction(path: Path) -> str:
    """The text of an instruction file, without outer white space.

    Raises:
        UserError: the file is missing, not UTF-8 or empty.
    """
    text = "\n".join(read_lines(path, UserError, "a variant names it as its instruction")).strip()
    if not text:
        raise UserError(f"{path}, the instruction of a variant, is empty: `instruction: data/dialogues` gives none")
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


def instruct(tokenizer: Tokenizer, context: Sequence[Turn], instruction: str) -> tuple[Turn, ...]:
    """`context`, whose first turn is the user's, with `instruction` before it."""
    first, *rest = context
    if has_system_turn(tokenizer, tokenizer.chat_template):
        return (Turn("system", instruction), first, *rest)
    return (Turn(first.role, f"{instruction}\n\n{first.text}"), *rest)


@lru_cache(maxsize=16)
def has_system_turn(tokenizer: Tokenizer, template: str) -> bool:
    """Whether `template`, the tokenizer's chat template, renders a system turn, and differently from other turns.

    Gemma 2's refuses a system turn. Others drop it, or render it like a turn of the user or the assistant, which no
    model was trained on. Mistral 0.3's writes it into the last turn, and leaves it out where that is a reply.
    """
    system = _render_after(tokenizer, "system")
    if system is None or MARK not in system or system in {_render_after(tokenizer, role) for role in SPEAKERS}:
        return False
    before = system.partition(MARK)[0]
    turns = [Turn("system", MARK), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    return all(render(tokenizer, turns[:end]).startswith(before + MARK) for end in (3, 4, 5))


def _render_after(tokenizer: Tokenizer, role: Role) -> str | None:
    """The text of a turn of `role` and a user turn after it; None if the template refuses them."""
    from jinja2 import TemplateError as Refusal

    try:
        return render(tokenizer, [Turn(role, MARK), Turn("user", "a")])
    except Refusal:
        return None


def _length(tokenizer: Tokenizer, context: Sequence[Turn]) -> int:
    return len(encode_prompt(tokenizer, context, sys.maxsize))
