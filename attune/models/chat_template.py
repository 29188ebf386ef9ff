"""Dialogues as token ids: render the chat template, compute the loss mask, truncate to the context window.

Everything that a model reads, in training, generation and scoring, is tokenised here, so that BOS, the end of a reply
and the truncation of a long context are the same everywhere. So is the boundary between prompt and reply: no token
spans it. A model that generates has read the prompt's tokens and continues from them, so that training must see the
same tokens. (Under Mistral's template the tokenizer alone would merge "]" with a "(" that opens a reply.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

from attune.data.dialogue import Role, Turn, join_system, split_system
from attune.runtime.errors import TemplateError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from transformers import PreTrainedTokenizerFast

# A private-use character. It replaces a turn's text where only the template's text around it matters, and marks places
# in a rendered text.
MARK = "\ue000"


@dataclass(frozen=True)
class Supervised:
    """A dialogue of T tokens and its loss mask: `mask[i]` is true where token i carries the loss."""

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
    """A tokenizer with a minimal chat template: BOS, then each turn after the token of its role; EOS ends a reply.

    `{% generation %}` marks the assistant's text, for libraries that compute their loss mask from it.

    Args:
        backend: its vocabulary has the role tokens.
        user: role token of the user.
        assistant: role token of the assistant.
        max_positions: the model's maximum length, in tokens.
        settings: arguments of `PreTrainedTokenizerFast`, among them the special tokens.
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
    """Turns as the `messages` of a chat template."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def render(tokenizer: Tokenizer, turns: Sequence[Turn], prompt: bool = False) -> str:
    """The text of `turns` under the tokenizer's chat template; with `prompt`, followed by the generation prompt.

    A template without system turns gets the text of a system turn before the first user turn.
    """
    if split_system(turns)[0] and not has_system_turn(tokenizer, tokenizer.chat_template):
        turns = join_system(turns)
    text = tokenizer.apply_chat_template(messages(turns), tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    bos = tokenizer.bos_token
    # Zephyr's template has no BOS: its tokenizer adds it to a text, but not to a rendered chat, which is tokenised
    # without special tokens.
    if bos and not text.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = bos + text
    return text


@lru_cache(maxsize=16)
def has_system_turn(tokenizer: Tokenizer, template: str) -> bool:
    """Whether `template`, the tokenizer's chat template, renders a system turn, and differently from other turns.

    Gemma's refuses a system turn. Others drop it, or render it like a turn of the user or the assistant, which no model
    was trained on.
    """
    from jinja2 import TemplateError as Refusal

    def after(role: Role) -> str | None:
        """The text of a turn of `role` and a user turn after it; None if the template refuses them."""
        try:
            text = tokenizer.apply_chat_template(messages([Turn(role, MARK), Turn("user", "a")]), tokenize=False)
        except Refusal:
            return None
        assert isinstance(text, str)
        return text

    system = after("system")
    return system is not None and MARK in system and system not in {after("user"), after("assistant")}


def encode_dialogue(tokenizer: Tokenizer, turns: Sequence[Turn], *, loss_on: Role, max_length: int) -> Supervised:
    """A dialogue for supervised fine-tuning.

    The loss mask covers the tokens of the `loss_on` turns and, for the assistant, the token that ends its turn. A
    dialogue longer than `max_length` loses its oldest exchanges, then the first words of the user's turn. A reply
    longer than half the window is itself truncated, at its end.

    Raises:
        TemplateError: the template renders a turn differently once another follows, or a single word does not fit.
    """
    turns = _fit_dialogue(tokenizer, tuple(turns), max_length)
    encoded = _encode(tokenizer, turns)
    spans = [_span(tokenizer, turns, i, encoded.text) for i, turn in enumerate(turns) if turn.role == loss_on]
    # By overlap, not containment: a sentencepiece token includes the space before its word, which is outside the span.
    mask = [any(a < end and start < b for start, end in spans) for a, b in encoded.offsets]
    return Supervised(encoded.ids[:max_length], mask[:max_length])


def encode_completion(tokenizer: Tokenizer, context: Sequence[Turn], reply: str) -> Completion:
    """The prompt of a context and one reply to it, for log-probabilities.

    Raises:
        TemplateError: the tokens of the prompt are not a prefix of the tokens of prompt and reply.
    """
    prompt = _encode(tokenizer, context, prompt=True).ids
    both = _encode(tokenizer, [*context, Turn("assistant", reply)]).ids
    if both[: len(prompt)] != prompt:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, both, strict=False)))
        before, alone, replied = map(tokenizer.decode, (prompt[:same], prompt[same:], both[same:]))
        raise TemplateError(
            f"the tokens of a prompt are not a prefix of those of prompt and reply: {before[-40:]!r} is followed by "
            f"{alone[:40]!r} without the reply, by {replied[:40]!r} with it"
        )
    return Completion(prompt, both[len(prompt) :])


def encode_prompt(tokenizer: Tokenizer, context: Sequence[Turn], max_length: int) -> list[int]:
    """The token ids of a prompt for generation, truncated to `max_length` tokens."""
    return _encode(tokenizer, fit_context(tokenizer, context, max_length), prompt=True).ids


def fit_context(tokenizer: Tokenizer, context: Sequence[Turn], max_length: int) -> tuple[Turn, ...]:
    """Truncate a context until its prompt has at most `max_length` tokens.

    The oldest exchanges (a user turn and the reply to it) go first, so that a user turn still opens the context, after
    the system turn, which is never cut. If the
    last turn is still too long, its first words go, since the last words matter most to a reply.

    Raises:
        TemplateError: a single character does not fit.
    """
    system, turns = split_system(context)
    while len(turns) > 2 and not _prompt_fits(tokenizer, (*system, *turns), max_length):
        turns = turns[2:]
    if _prompt_fits(tokenizer, (*system, *turns), max_length):
        return (*system, *turns)
    # By whole words; where the last word alone does not fit, by characters.
    for parts, joint in ((turns[0].text.split(), " "), (list(turns[0].text), "")):
        if cut := _cut(tokenizer, (*system, *turns), parts, joint, max_length):
            return cut
    why = ", since its system turn is never cut" if system else ""
    raise TemplateError(f"no prompt fits into {max_length} tokens under this chat template{why}")


def _cut(
    tokenizer: Tokenizer, turns: tuple[Turn, ...], parts: Sequence[str], joint: str, max_length: int
) -> tuple[Turn, ...] | None:
    """`turns` without the fewest first parts of the first user turn that let the prompt fit; None if none fits."""
    system, (first, *others) = split_system(turns)

    def without(number: int) -> tuple[Turn, ...]:
        return (*system, replace(first, text=joint.join(parts[number:])), *others)

    # Whether the rest fits is monotonic in the number of parts that go.
    counts = range(1, len(parts))
    least = bisect_left(counts, True, key=lambda number: _prompt_fits(tokenizer, without(number), max_length))
    return without(counts[least]) if least < len(counts) else None


def _prompt_fits(tokenizer: Tokenizer, turns: Sequence[Turn], max_length: int) -> bool:
    return len(_encode(tokenizer, turns, prompt=True).ids) <= max_length


def check_template(tokenizer: Tokenizer) -> None:
    """Check that the chat template shows where a reply begins and ends, and is the same for every reply.

    Raises:
        TemplateError: it does not; says what to change.
    """
    asked, replied = Turn("user", "a"), Turn("assistant", MARK)
    prompt = render(tokenizer, [asked], prompt=True)
    before, _, after = render(tokenizer, [asked, replied]).partition(MARK)
    if before.rstrip() != prompt.rstrip():
        raise TemplateError(
            f"the chat template's generation prompt ends in {_ending(prompt, before)!r}, but a reply begins after "
            f"{_ending(before, prompt)!r}: let chat_template write the same text before every reply and, "
            "with add_generation_prompt, at the end of a prompt"
        )
    if not after.strip():
        raise TemplateError(
            "the chat template writes nothing after a reply, so its end cannot be learned: add eos_token after the "
            "content of the assistant in chat_template"
        )
    both = render(tokenizer, [asked, replied, asked, Turn("assistant", "b")])
    if not both.startswith(before + MARK):
        raise TemplateError(
            f"the chat template writes {_ending(before, both)!r} before the last reply alone, so that a reply changes "
            "once another follows: remove it from chat_template, or write it before every reply"
        )


def _ending(text: str, other: str) -> str:
    """The end of `text` that `other` does not share."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
    return text[shared:].strip()[:40]


def stop_tokens(tokenizer: Tokenizer) -> list[int]:
    """The ids that end a reply: the end of turn of the chat template, and EOS."""
    end_of_turn = encode_completion(tokenizer, [Turn("user", "a")], "b").reply[-1]
    return sorted({end_of_turn, tokenizer.eos_token_id} - {None})


def _fit_dialogue(tokenizer: Tokenizer, turns: tuple[Turn, ...], max_length: int) -> tuple[Turn, ...]:
    """Truncate a dialogue. A reply of more than half the window is kept whole: the caller then cuts the token ids."""
    system, turns = split_system(turns)
    while len(_encode(tokenizer, (*system, *turns)).ids) > max_length:
        if len(turns) > 2:
            turns = turns[2:]
            continue
        opening, reply = (*system, *turns[:1]), turns[1:]
        length = sum(len(encode_completion(tokenizer, opening, turn.text).reply) for turn in reply)
        return (*fit_context(tokenizer, opening, max_length - min(length, max_length // 2)), *reply)
    return (*system, *turns)


def _span(tokenizer: Tokenizer, turns: tuple[Turn, ...], index: int, text: str) -> tuple[int, int]:
    """The characters [start, end) of turn `index` in the rendered `text`, for a reply with its end-of-turn token."""
    turn, before_turn = turns[index], turns[:index]
    after = render(tokenizer, turns[: index + 1]).rstrip()
    if turn.role == "assistant":
        before, suffix = render(tokenizer, before_turn, prompt=True), ""
    else:
        # A search for the turn's text could match the template's own text: "I" is also in "[INST]".
        before, _, suffix = render(tokenizer, (*before_turn, Turn(turn.role, MARK))).rstrip().rpartition(MARK)
    if not (after.startswith(before) and after.endswith(suffix) and text.startswith(after)):
        raise TemplateError(f"the chat template renders turn {index} differently when others follow: {after[-60:]!r}")
    return len(before), len(after) - len(suffix)


@dataclass(frozen=True)
class _Encoded:
    """A rendered text, its T token ids, and the characters [start, end) of each token."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


def _encode(tokenizer: Tokenizer, turns: Sequence[Turn], prompt: bool = False) -> _Encoded:
    """Tokenise `turns` with a token boundary where each reply begins. A prompt keeps its trailing white space."""
    text = render(tokenizer, turns, prompt)
    text = text if prompt else text.rstrip()
    encoded = _tokenize(tokenizer, text)
    spanned = [
        boundary
        for boundary in _reply_starts(tokenizer, turns, text)
        if any(start < boundary < end for start, end in encoded.offsets)
    ]
    return _tokenize_with_boundaries(tokenizer, text, spanned) if spanned else encoded


def _reply_starts(tokenizer: Tokenizer, turns: Sequence[Turn], text: str) -> list[int]:
    """The index in `text` where each reply begins, which is the length of the prompt before it."""
    replies = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not replies:
        return []
    # A single rendering with a mark before each reply finds all of them, unless the template changes a turn's text
    # because of the mark.
    marked = render(tokenizer, [replace(t, text=MARK + t.text) if t.role == "assistant" else t for t in turns])
    opening = _reply_opening(tokenizer, tokenizer.chat_template)
    if marked.count(MARK) == len(replies) and marked.replace(MARK, "").startswith(text):
        parts = marked.split(MARK)[:-1]
        return [sum(map(len, parts[: i + 1])) - opening for i in range(len(parts))]
    return [len(render(tokenizer, turns[:i], prompt=True)) for i in replies]


@lru_cache(maxsize=16)
def _reply_opening(tokenizer: Tokenizer, template: str) -> int:
    """The number of characters that `template` writes between the generation prompt and the text of a reply."""
    user = Turn("user", "a")
    both = render(tokenizer, [user, Turn("assistant", MARK)])
    return both.index(MARK) - len(render(tokenizer, [user], prompt=True))


def _tokenize(tokenizer: Tokenizer, text: str) -> _Encoded:
    # The template writes the special tokens itself: adding them here would give a second BOS.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: Any = encoded["input_ids"]
    offsets: Any = encoded["offset_mapping"]
    return _Encoded(text, list(ids), list(offsets))


def _tokenize_with_boundaries(tokenizer: Tokenizer, text: str, boundaries: Sequence[int]) -> _Encoded:
    """Tokenise `text` with a token boundary at each of `boundaries`.

    A mark at each boundary keeps the parts apart, and its tokens are dropped. Tokenising each part by itself would give
    other tokens: sentencepiece puts a space before every text.

    Raises:
        TemplateError: a token contains a mark and other text.
    """
    parts = [text[start:end] for start, end in pairwise([0, *boundaries, len(text)])]
    marked = _tokenize(tokenizer, MARK.join(parts))
    # Boundary i has i marks before it.
    marks = [boundary + i for i, boundary in enumerate(boundaries)]
    ids, offsets = [], []
    for token, (start, end) in zip(marked.ids, marked.offsets, strict=True):
        if (start, end) in ((mark, mark + 1) for mark in marks):
            continue
        if any(start <= mark < end for mark in marks):
            raise TemplateError(f"the tokenizer merges a reply with its prompt: {marked.text[start:end]!r}")
        before = sum(mark < start for mark in marks)
        ids.append(token)
        offsets.append((start - before, end - before))
    return _Encoded(text, ids, offsets)
