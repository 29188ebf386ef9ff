"""Dialogues as token ids: render the chat template, compute the loss mask, truncate to the context window.

Everything that a model reads, in training, generation and scoring, is tokenised here, so that BOS, the end of a reply
and the truncation of a long context are the same everywhere. So is the boundary between prompt and reply: no token
spans it. A model that generates has read the prompt's tokens and continues from them, so that training must see the
same tokens. (Under Mistral's template the tokenizer alone would merge "]" with a "(" that opens a reply.)
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
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
# The day of templates that write a date (Llama 3.2, SmolLM 3, Granite 3), which Llama 3's themselves fall back on.
TODAY = datetime(2024, 7, 26)
DATE = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
THINKING = "enable_thinking"


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


def settle_template(template: str) -> str:
    """`template` with what would otherwise depend on the day or on who renders it.

    A date is that of `TODAY`, so that tokens do not depend on when a stage runs. Thoughts are off where a template can
    ask for them (Qwen 3, SmolLM 3), since the replies of a corpus have none.

    Raises:
        TemplateError: the template computes the form of its date.
    """
    template = DATE.sub(lambda call: repr(TODAY.strftime(call[1] or call[2])), template)
    if "strftime_now(" in template:
        raise TemplateError("the chat template writes the day's date: replace strftime_now(…) in it by a fixed text")
    if THINKING in template:
        # The empty text keeps a line break at the template's beginning.
        default = f"{{% if {THINKING} is not defined %}}{{% set {THINKING} = false %}}{{% endif %}}{{{{ '' }}}}"
        template = template if template.startswith(default) else default + template
    return template


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as the `messages` of a chat template."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def render(tokenizer: Tokenizer, turns: Sequence[Turn], prompt: bool = False) -> str:
    """The text of `turns` under the tokenizer's chat template; with `prompt`, followed by the generation prompt.

    A template without system turns gets the text of a system turn before the first user turn.
    """
    if split_system(turns)[0] and not has_system_turn(tokenizer, tokenizer.chat_template):
        turns = join_system(turns)
    text = _apply(tokenizer, turns, prompt)
    if not prompt and _adds_final_eos(tokenizer, tokenizer.chat_template):
        text = text.removesuffix(tokenizer.eos_token)
    bos = tokenizer.bos_token
    # Zephyr's template has no BOS: its tokenizer adds it to a text, but not to a rendered chat, which is tokenised
    # without special tokens.
    if bos and not text.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = bos + text
    return text


def _apply(tokenizer: Tokenizer, turns: Sequence[Turn], prompt: bool) -> str:
    text = tokenizer.apply_chat_template(messages(turns), tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    return text


@lru_cache(maxsize=16)
def _adds_final_eos(tokenizer: Tokenizer, template: str) -> bool:
    """Whether `template` writes EOS after a dialogue (Phi 3), where no other turn or generation prompt follows."""
    user, reply = Turn("user", "a"), Turn("assistant", MARK)
    end, followed = (
        _apply(tokenizer, turns, prompt).partition(MARK)[2]
        for turns, prompt in (([user, reply], False), ([user, reply, user], True))
    )
    return bool(tokenizer.eos_token) and end.endswith(tokenizer.eos_token) and not followed.startswith(end)


def encode_examples(tokenizer: Tokenizer, turns: Sequence[Turn], *, loss_on: Role, max_length: int) -> list[Supervised]:
    """A dialogue for supervised fine-tuning: the sequence of `encode_dialogue`.

    Under a template that renders a reply differently once another follows (Qwen 3 writes an empty thought before the
    last reply alone) there is a sequence for each turn of `loss_on`, which ends with it and has the loss on it alone:
    each reply is learned after the tokens that a model which generates has read.

    Raises:
        TemplateError: as `encode_dialogue`.
    """
    if _keeps_replies(tokenizer, tokenizer.chat_template):
        return [encode_dialogue(tokenizer, turns, loss_on=loss_on, max_length=max_length)]
    ends = [i + 1 for i, turn in enumerate(turns) if turn.role == loss_on]
    fitted = [_fit_dialogue(tokenizer, tuple(turns[:end]), max_length) for end in ends]
    return [_supervised(tokenizer, one, encoded, [len(one) - 1], max_length) for one, encoded in fitted]


@lru_cache(maxsize=16)
def has_system_turn(tokenizer: Tokenizer, template: str) -> bool:
    """Whether `template`, the tokenizer's chat template, renders a system turn, and differently from other turns.

    Gemma 2's refuses a system turn. Others drop it, or render it like a turn of the user or the assistant, which no
    model was trained on. Mistral 0.3's writes it into the last turn, and leaves it out where that is a reply.
    """
    from jinja2 import TemplateError as Refusal

    def after(role: Role) -> str | None:
        """The text of a turn of `role` and a user turn after it; None if the template refuses them."""
        try:
            return _apply(tokenizer, [Turn(role, MARK), Turn("user", "a")], prompt=False)
        except Refusal:
            return None

    system = after("system")
    if system is None or MARK not in system or system in {after("user"), after("assistant")}:
        return False
    before = system.partition(MARK)[0]
    turns = [Turn("system", MARK), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    return all(_apply(tokenizer, turns[:end], prompt=False).startswith(before + MARK) for end in (3, 4, 5))


def encode_dialogue(tokenizer: Tokenizer, turns: Sequence[Turn], *, loss_on: Role, max_length: int) -> Supervised:
    """A dialogue for supervised fine-tuning.

    The loss mask covers the tokens of the `loss_on` turns and, for the assistant, the token that ends its turn. A
    dialogue longer than `max_length` loses its oldest exchanges, then the first words of the user's turn. A reply
    longer than half the window is itself truncated, at its end.

    Raises:
        TemplateError: the template renders a turn differently once another follows, or a single word does not fit.
    """
    fitted, encoded = _fit_dialogue(tokenizer, tuple(turns), max_length)
    learned = [i for i, turn in enumerate(fitted) if turn.role == loss_on]
    return _supervised(tokenizer, fitted, encoded, learned, max_length)


def _supervised(
    tokenizer: Tokenizer, turns: tuple[Turn, ...], encoded: _Encoded, learned: Sequence[int], max_length: int
) -> Supervised:
    """`turns`, `encoded` and cut at `max_length` tokens, with the loss on those at the indices `learned`."""
    spans = [_span(tokenizer, turns, i, encoded.text) for i in learned]
    # By overlap, not containment: a sentencepiece token includes the space before its word, which is outside the span.
    # But not a special token before a text, which may take the white space at the text's beginning (Phi 3).
    special = _special_tokens(tokenizer)
    mask = [
        any(a < end and start < b and (start <= a or token not in special) for start, end in spans)
        for token, (a, b) in zip(encoded.ids, encoded.offsets, strict=True)
    ]
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
            f"{alone[:40]!r} without the reply, by {replied[:40]!r} with it: let chat_template write both alike, and "
            "take out of the reply what the template reads as its own (a thought, a special token)"
        )
    return Completion(prompt, both[len(prompt) :])


def encode_prompt(tokenizer: Tokenizer, context: Sequence[Turn], max_length: int) -> list[int]:
    """The token ids of a prompt for generation, truncated to `max_length` tokens."""
    return _encode(tokenizer, fit_context(tokenizer, context, max_length), prompt=True).ids


def fit_context(tokenizer: Tokenizer, context: Sequence[Turn], max_length: int) -> tuple[Turn, ...]:
    """Truncate a context until its prompt has at most `max_length` tokens.

    The oldest exchanges (a user turn and the reply to it) go first, so that a user turn still opens the context, after
    the system turn, which is never cut. If the last turn is still too long, its first words go, since the last words
    matter most to a reply.

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
    """Check that the chat template shows where a reply begins and ends, in a dialogue of one exchange and of two.

    Raises:
        TemplateError: it does not, or the tokenizer merges a prompt with its reply; says what to change.
    """
    user, first, second = Turn("user", f"{MARK}0"), Turn("assistant", f"{MARK}1"), Turn("assistant", f"{MARK}2")
    end = _end_of_reply(tokenizer, [user], first)
    if not end:
        raise TemplateError(
            "the chat template writes nothing after a reply, so its end cannot be learned: add eos_token after the "
            "content of the assistant in chat_template"
        )
    last = _end_of_reply(tokenizer, [user, first, user], second)
    followed = render(tokenizer, [user, first, user]).partition(first.text)[2]
    if end != last or not followed.lstrip().startswith(end):
        raise TemplateError(
            f"the chat template writes {end!r} after a reply, but something else where another turn follows or went "
            "before: let chat_template end every reply alike"
        )
    encode_completion(tokenizer, [user, first, user], "b")
    encoded = _encode(tokenizer, [user, Turn("assistant", "b")])
    start, _ = encoded.offsets[-1]
    if encoded.text[start:] != end:
        raise TemplateError(
            f"the chat template ends a reply with {end!r}, but the tokenizer has no such token (the last is "
            f"{encoded.text[start:]!r}): add it as a special token, or write eos_token instead in chat_template"
        )


def _end_of_reply(tokenizer: Tokenizer, context: Sequence[Turn], reply: Turn) -> str:
    """What the chat template writes after `reply`, without outer white space.

    Raises:
        TemplateError: the template fails, leaves out a turn, or the reply does not follow the generation prompt.
    """
    import jinja2

    turns = [*context, reply]
    try:
        prompt, whole = render(tokenizer, context, prompt=True), render(tokenizer, turns)
    except (jinja2.TemplateError, TypeError) as error:
        raise TemplateError(
            f"the chat template cannot render a dialogue of texts ({error}): correct chat_template, or take a model of "
            "text alone"
        ) from None
    if left_out := [turn.role for turn in turns if whole.count(turn.text) != turns.count(turn)]:
        raise TemplateError(
            f"the chat template does not write each text of the {left_out[0]} once: let it write the content of every "
            "message"
        )
    before, _, after = whole.partition(reply.text)
    if not before.startswith(prompt) or before[len(prompt) :].strip():
        raise TemplateError(
            f"the chat template's generation prompt ends in {_ending(prompt, before)!r}, but a reply begins after "
            f"{_ending(before, prompt)!r}: let chat_template write the same text before every reply and, "
            "with add_generation_prompt, at the end of a prompt"
        )
    return after.strip()


@lru_cache(maxsize=16)
def _keeps_replies(tokenizer: Tokenizer, template: str) -> bool:
    """Whether `template` renders a reply in the same way where other turns follow it."""
    exchange = [Turn("user", "a"), Turn("assistant", MARK)]
    before = render(tokenizer, exchange).partition(MARK)[0]
    return render(tokenizer, [*exchange, *exchange]).startswith(before + MARK)


def _ending(text: str, other: str) -> str:
    """The end of `text` that `other` does not share."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
    return text[shared:].strip()[:40] or text[shared:][:40]


def stop_tokens(tokenizer: Tokenizer, of_model: int | Sequence[int] | None = None) -> list[int]:
    """The ids that end a reply: the end of turn of the chat template, EOS, and what else ends a text of the model.

    Args:
        tokenizer: the model's.
        of_model: `eos_token_id` of its generation_config.json, one or several (Llama 3 has three). Ids of ordinary
            tokens are ignored: they are those of another tokenizer.
    """
    end_of_turn = encode_completion(tokenizer, [Turn("user", "a")], "b").reply[-1]
    others = [of_model] if isinstance(of_model, int) else of_model or []
    return sorted({end_of_turn, tokenizer.eos_token_id} - {None} | _special_tokens(tokenizer).intersection(others))


@lru_cache(maxsize=16)
def _special_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of tokens that are no pieces of words; reading them takes longer than tokenising a short dialogue."""
    return frozenset(tokenizer.get_added_vocab().values())


def _fit_dialogue(tokenizer: Tokenizer, turns: tuple[Turn, ...], max_length: int) -> tuple[tuple[Turn, ...], _Encoded]:
    """Truncate a dialogue, and encode what is left.

    A reply of more than half the window is kept whole: the caller then cuts the token ids.
    """
    system, turns = split_system(turns)
    encoded = _encode(tokenizer, (*system, *turns))
    while len(turns) > 2 and len(encoded.ids) > max_length:
        turns = turns[2:]
        encoded = _encode(tokenizer, (*system, *turns))
    if len(encoded.ids) <= max_length:
        return (*system, *turns), encoded
    opening, reply = (*system, *turns[:1]), turns[1:]
    length = sum(len(encode_completion(tokenizer, opening, turn.text).reply) for turn in reply)
    cut = (*fit_context(tokenizer, opening, max_length - min(length, max_length // 2)), *reply)
    return cut, _encode(tokenizer, cut)


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
    everywhere = _looks_ahead(tokenizer, tokenizer.chat_template)
    spanned = [
        boundary
        for boundary in _reply_starts(tokenizer, turns, text)
        if everywhere or any(start < boundary < end for start, end in encoded.offsets)
    ]
    return _tokenize_with_boundaries(tokenizer, text, spanned) if spanned else encoded


def _reply_starts(tokenizer: Tokenizer, turns: Sequence[Turn], text: str) -> list[int]:
    """The index in `text` where each reply begins, which is the length of the prompt before it."""
    replies = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not replies:
        return []
    # One rendering with a mark for each reply finds all of them, unless the template looks into the texts.
    marked = render(tokenizer, [replace(turn, text=MARK) if turn.role == "assistant" else turn for turn in turns])
    parts, starts = marked.split(MARK)[:-1], [0]
    for part in parts:
        at = text.find(part, starts[-1])
        starts.append(at + len(part) if at >= 0 else len(text) + 1)
    if len(parts) == len(replies) and starts[-1] <= len(text):
        opening = _reply_opening(tokenizer, tokenizer.chat_template)
        return [start - opening for start in starts[1:]]
    return [len(render(tokenizer, turns[:i], prompt=True)) for i in replies]


@lru_cache(maxsize=16)
def _reply_opening(tokenizer: Tokenizer, template: str) -> int:
    """The number of characters that `template` writes between the generation prompt and the text of a reply."""
    user = Turn("user", "a")
    both = render(tokenizer, [user, Turn("assistant", MARK)])
    return both.index(MARK) - len(render(tokenizer, [user], prompt=True))


@lru_cache(maxsize=16)
def _looks_ahead(tokenizer: Tokenizer, template: str) -> bool:
    """Whether the tokens at the end of a generation prompt change with a reply behind it, without a token across both.

    GPT-2's pre-tokenizer makes one part of two line breaks at the end of a text, and two parts before a letter.
    """
    prompt = render(tokenizer, [Turn("user", "a")], prompt=True)
    alone, followed = _tokenize(tokenizer, prompt), _tokenize(tokenizer, f"{prompt}b")
    return followed.ids[: len(alone.ids)] != alone.ids


def _tokenize(tokenizer: Tokenizer, text: str) -> _Encoded:
    # The template writes the special tokens itself: adding them here would give a second BOS.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: Any = encoded["input_ids"]
    offsets: Any = encoded["offset_mapping"]
    return _Encoded(text, list(ids), list(offsets))


def _tokenize_with_boundaries(tokenizer: Tokenizer, text: str, boundaries: Sequence[int]) -> _Encoded:
    """Tokenise `text` with a token boundary at each of `boundaries`, before which its tokens are those of a text's end.

    The parts between them are tokenised one by one, each after a mark, whose tokens are dropped: without it
    sentencepiece would put a space before every part.

    Raises:
        TemplateError: a token contains a mark and other text.
    """
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, end in pairwise([0, *boundaries, len(text)]):
        mark = MARK if start else ""
        part = _tokenize(tokenizer, mark + text[start:end])
        for token, (first, last) in zip(part.ids, part.offsets, strict=True):
            if last <= len(mark):
                continue
            if first < len(mark):
                raise TemplateError(f"the tokenizer merges a reply with what is before it: {part.text[first:last]!r}")
            ids.append(token)
            offsets.append((start + first - len(mark), start + last - len(mark)))
    return _Encoded(text, ids, offsets)
