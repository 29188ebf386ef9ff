"""Dialogues as token ids: one place that renders chat templates, masks the supervised tokens and fits the window.

Everything that a model reads, in training, generation and scoring, passes through here, so that the beginning of a
sequence, the end of a reply and the cut of a long context are the same everywhere. So is where a reply begins: no token
lies across that border, since a model that answers has read the prompt's tokens and goes on from them. Under Mistral's
template the tokeniser by itself would make one token of "]" and a reply's opening "(".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

from attune.data.dialogue import Role, Turn
from attune.runtime.errors import TemplateError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from transformers import PreTrainedTokenizerFast

# Stands for a turn's words where only what the template writes around them is wanted (a private-use character).
MARK = "\ue000"


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


def role_tokenizer(
    backend: Backend, user: str, assistant: str, max_positions: int, **settings: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer whose chat template is BOS, then each turn behind the token of its role; a reply ends with EOS.

    `{% generation %}` marks what the assistant says, for libraries that mask by it.

    Args:
        backend: with a vocabulary that has the tokens.
        user: the token of the user's role.
        assistant: that of the assistant's.
        max_positions: what the model reads at most, in tokens.
        settings: of transformers, the special tokens among them.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=[user, assistant],
        model_max_length=max_positions,
        padding_side="right",
        **settings,
    )
    tokenizer.chat_template = _role_template(user, assistant)
    return tokenizer


def _role_template(user: str, assistant: str) -> str:
    return (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
        f"{assistant}{{% generation %}}{{{{ message['content'] + eos_token }}}}{{% endgeneration %}}"
        f"{{% else %}}{user}{{{{ message['content'] }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


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
    encoded = _encode(tokenizer, turns)
    spans = [_span(tokenizer, turns, i, encoded.text) for i, turn in enumerate(turns) if turn.role == loss_on]
    # A token counts where it overlaps: a sentencepiece token begins with the space before its word.
    mask = [any(a < end and start < b for start, end in spans) for a, b in encoded.offsets]
    return Supervised(encoded.ids[:max_length], mask[:max_length])


def encode_completion(tokenizer: Tokenizer, context: Sequence[Turn], reply: str) -> Completion:
    """A prompt and one reply to it, ready for log-probabilities.

    Raises:
        TemplateError: the prompt's tokens are no prefix of the tokens of prompt and reply.
    """
    prompt = _encode(tokenizer, context, prompt=True).ids
    whole = _encode(tokenizer, [*context, Turn("assistant", reply)]).ids
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
    return _encode(tokenizer, fit_context(tokenizer, context, max_length), prompt=True).ids


def fit_context(tokenizer: Tokenizer, context: Sequence[Turn], max_length: int) -> tuple[Turn, ...]:
    """Shorten a context until its prompt has at most `max_length` tokens.

    The oldest exchanges (a user's turn and the answer to it) go first, so that the user still opens; where one turn is
    left and still too long, its first words go, since what was said last matters most to a reply.

    Raises:
        TemplateError: not even one word fits.
    """
    turns = tuple(context)
    while (excess := len(_encode(tokenizer, turns, prompt=True).ids) - max_length) > 0:
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
    while len(_encode(tokenizer, turns).ids) > max_length:
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


@dataclass(frozen=True)
class _Encoded:
    """A rendered text, its T token ids, and the characters [start, end) that each stands for."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


def _encode(tokenizer: Tokenizer, turns: Sequence[Turn], prompt: bool = False) -> _Encoded:
    """`turns` as tokens, none of which lies across the beginning of a reply; a prompt keeps its last white space."""
    text = render(tokenizer, turns, prompt)
    text = text if prompt else text.rstrip()
    encoded = _tokenize(tokenizer, text)
    crossed = [
        border
        for border in _borders(tokenizer, turns, text)
        if any(start < border < end for start, end in encoded.offsets)
    ]
    return _tokenize_apart(tokenizer, text, crossed) if crossed else encoded


def _borders(tokenizer: Tokenizer, turns: Sequence[Turn], text: str) -> list[int]:
    """Where in `text` each reply begins: the length of the prompt before it."""
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        return []
    # One rendering finds them all, unless the template changes a turn's words for the mark before them.
    marked = render(tokenizer, [replace(t, text=MARK + t.text) if t.role == "assistant" else t for t in turns])
    opening = _opening(tokenizer, tokenizer.chat_template)
    if marked.count(MARK) == len(answers) and marked.replace(MARK, "").startswith(text):
        parts = marked.split(MARK)[:-1]
        return [sum(map(len, parts[: i + 1])) - opening for i in range(len(parts))]
    return [len(render(tokenizer, turns[:i], prompt=True)) for i in answers]


@lru_cache(maxsize=16)
def _opening(tokenizer: Tokenizer, template: str) -> int:
    """How many characters `template` writes between a prompt and the words of the reply behind it."""
    user = Turn("user", "a")
    whole = render(tokenizer, [user, Turn("assistant", MARK)])
    return whole.index(MARK) - len(render(tokenizer, [user], prompt=True))


def _tokenize(tokenizer: Tokenizer, text: str) -> _Encoded:
    # The template writes the special tokens itself: adding them again would give two BOS.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: Any = encoded["input_ids"]
    offsets: Any = encoded["offset_mapping"]
    return _Encoded(text, list(ids), list(offsets))


def _tokenize_apart(tokenizer: Tokenizer, text: str, borders: Sequence[int]) -> _Encoded:
    """`text` with a boundary of tokens at each of `borders`: a mark between the parts keeps them apart, and is dropped.

    Tokenising the parts one by one would not do: sentencepiece opens every text with a space.

    Raises:
        TemplateError: the mark itself became part of a token.
    """
    parts = [text[start:end] for start, end in pairwise([0, *borders, len(text)])]
    marked = _tokenize(tokenizer, MARK.join(parts))
    marks = [border + i for i, border in enumerate(borders)]
    ids, offsets = [], []
    for token, (start, end) in zip(marked.ids, marked.offsets, strict=True):
        if (start, end) in ((mark, mark + 1) for mark in marks):
            continue
        if any(start <= mark < end for mark in marks):
            raise TemplateError(f"the tokeniser joins a reply to its prompt: {marked.text[start:end]!r}")
        before = sum(mark < start for mark in marks)
        ids.append(token)
        offsets.append((start - before, end - before))
    return _Encoded(text, ids, offsets)
