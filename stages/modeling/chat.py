"""Dialogues as token ids: one place that renders chat templates, masks the supervised tokens and fits the window.

Everything that a model reads, in training, generation and scoring, passes through here, so that the beginning of a
sequence, the end of a reply and the cut of a long context are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from stages.dialogues import Role, Turn
from stages.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# `{% generation %}` marks what the assistant says, for libraries that mask by it.
TINY_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# Stands for a turn's words where only what the template writes around them is wanted (a private-use character).
MARK = "\ue000"


class TemplateError(UserError):
    """A chat template renders a prompt that is no prefix of the prompt with its reply."""


@dataclass(frozen=True)
class Supervised:
    """A whole dialogue. `mask[i]` is true where token i carries the loss; both have length T."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class Completion:
    """A prompt of P tokens and a reply of R tokens, whose last token ends the turn."""

    prompt: list[int]
    reply: list[int]


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns in the form that chat templates take."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def render(tokenizer: Tokenizer, turns: Sequence[Turn], prompt: bool = False) -> str:
    """The text of `turns` under the tokenizer's template, with the opening of a reply behind it if `prompt`."""
    text = tokenizer.apply_chat_template(messages(turns), tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    bos = tokenizer.bos_token
    # Zephyr's template leaves the BOS to the tokenizer, which puts it before any text but not before a rendered one.
    if bos and not text.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = bos + text
    return text


def encode_dialogue(tokenizer: Tokenizer, turns: Sequence[Turn], *, loss_on: Role, max_length: int) -> Supervised:
    """A dialogue for supervised fine-tuning.

    The mask covers the tokens of the `loss_on` turns and, where the assistant is meant, the token that ends its turn.
    A dialogue longer than `max_length` loses its oldest exchanges, then the first words of what the user says; a reply
    longer than half the window is itself cut, at its end.

    Raises:
        TemplateError: the template renders a turn differently once another follows, or not even one word fits.
    """
    turns = _fit_dialogue(tokenizer, tuple(turns), max_length)
    text = render(tokenizer, turns).rstrip()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [_span(tokenizer, turns, i, text) for i, turn in enumerate(turns) if turn.role == loss_on]
    # A token counts where it overlaps: a sentencepiece token begins with the space before its word.
    mask = [any(a < end and start < b for start, end in spans) for a, b in encoded["offset_mapping"]]
    return Supervised(encoded["input_ids"][:max_length], mask[:max_length])


def encode_completion(tokenizer: Tokenizer, context: Sequence[Turn], reply: str) -> Completion:
    """A prompt and one reply to it, ready for log-probabilities.

    Raises:
        TemplateError: the prompt's tokens are no prefix of the tokens of prompt and reply.
    """
    prompt_text = render(tokenizer, context, prompt=True)
    whole_text = render(tokenizer, [*context, Turn("assistant", reply)]).rstrip()
    prompt, whole = _tokenize(tokenizer, prompt_text), _tokenize(tokenizer, whole_text)
    if whole[: len(prompt)] != prompt:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
        before, alone, replied = map(tokenizer.decode, (prompt[:same], prompt[same:], whole[same:]))
        raise TemplateError(
            f"a prompt's tokens are no prefix of those with a reply behind it: {before[-40:]!r} goes on with "
            f"{alone[:40]!r} without the reply, {replied[:40]!r} with it"
        )
    return Completion(prompt, whole[len(prompt) :])


def encode_prompt(tokenizer: Tokenizer, context: Sequence[Turn], max_length: int) -> list[int]:
    """The token ids of a prompt for generation, fitted into `max_length` tokens."""
    return _tokenize(tokenizer, render(tokenizer, fit_context(tokenizer, context, max_length), prompt=True))


def fit_context(tokenizer: Tokenizer, context: Sequence[Turn], max_length: int) -> tuple[Turn, ...]:
    """Shorten a context until its prompt has at most `max_length` tokens.

    The oldest exchanges (a user's turn and the answer to it) go first, so that the user still opens; where one turn is
    left and still too long, its first words go, since what was said last matters most to a reply.

    Raises:
        TemplateError: not even one word fits.
    """
    turns = tuple(context)
    while (excess := len(_tokenize(tokenizer, render(tokenizer, turns, prompt=True))) - max_length) > 0:
        words = turns[0].text.split()
        if len(turns) > 2:
            turns = turns[2:]
        elif len(words) > 1:
            # A word has at least one token, but a fit must not cut more than it needs: a quarter of the excess a time.
            turns = (Turn(turns[0].role, " ".join(words[min(max(1, excess // 4), len(words) - 1) :])), *turns[1:])
        elif len(turns[0].text) > 1:
            turns = (Turn(turns[0].role, turns[0].text[len(turns[0].text) // 2 :]), *turns[1:])
        else:
            raise TemplateError(f"no prompt fits into {max_length} tokens under this chat template")
    return turns


def stop_tokens(tokenizer: Tokenizer) -> list[int]:
    """The ids that end a reply: the template's own end of turn and the tokenizer's end of sequence."""
    end_of_turn = encode_completion(tokenizer, [Turn("user", "a")], "b").reply[-1]
    return sorted({end_of_turn, tokenizer.eos_token_id} - {None})


def _fit_dialogue(tokenizer: Tokenizer, turns: tuple[Turn, ...], max_length: int) -> tuple[Turn, ...]:
    """Shorten a dialogue; a reply of more than half the window stays whole, and with it the dialogue too long."""
    while len(_tokenize(tokenizer, render(tokenizer, turns).rstrip())) > max_length:
        if len(turns) > 2:
            turns = turns[2:]
            continue
        opening, reply = turns[:1], turns[1:]
        length = sum(len(encode_completion(tokenizer, opening, turn.text).reply) for turn in reply)
        return (*fit_context(tokenizer, opening, max_length - min(length, max_length // 2)), *reply)
    return turns


def _span(tokenizer: Tokenizer, turns: tuple[Turn, ...], index: int, text: str) -> tuple[int, int]:
    """First and last character (exclusive) of what turn `index` says in `text`, with the token that ends a reply."""
    turn, before_turn = turns[index], turns[:index]
    after = render(tokenizer, turns[: index + 1]).rstrip()
    if turn.role == "assistant":
        before, behind = render(tokenizer, before_turn, prompt=True), ""
    else:
        # Looking for the turn's words could find the template's own: "I" is also in "[INST]".
        before, _, behind = render(tokenizer, (*before_turn, Turn(turn.role, MARK))).rstrip().rpartition(MARK)
    if not (after.startswith(before) and after.endswith(behind) and text.startswith(after)):
        raise TemplateError(f"the chat template renders turn {index} differently when others follow: {after[-60:]!r}")
    return len(before), len(after) - len(behind)


def _tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    # The template writes the special tokens itself: adding them again would give two BOS.
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids)
