"""Preference pairs as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from attune.data.dialogue import Turn, to_turns
from attune.models.chat_template import Completion, encode_completion, fit_context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# `encode_completion` of a tokenizer.
Encode = Callable[[tuple[Turn, ...], str], Completion]


def encode_pairs(
    tokenizer: Tokenizer, pairs: Path, max_length: int, drop: bool = False
) -> tuple[list[dict[str, list[int]]], list[dict[str, list[int]]]]:
    """The pairs of a parquet file, and the pairs that later rounds will form with the same contexts.

    Args:
        tokenizer: the base model's.
        pairs: parquet file with the columns `prompt`, `chosen`, `rejected` and optionally `future_rejected`.
        max_length: of `encode_pair`.
        drop: whether pairs that do not fit are left out, and counted; else they are truncated.

    Returns:
        Two lists of `encode_pair`, in the order of the file.
    """
    import pyarrow.parquet as pq
    from tqdm import tqdm

    encoded: list[dict[str, list[int]]] = []
    future: list[dict[str, list[int]]] = []
    # The pairs of a row have context and chosen reply in common.
    completion = lru_cache(maxsize=8)(partial(encode_completion, tokenizer))
    rows = pq.read_table(pairs).to_pylist()
    for row in tqdm(rows, desc="tokens", unit="pair"):
        context, chosen = to_turns(row["prompt"]), row["chosen"]
        for place, rejected in enumerate([row["rejected"], *(row.get("future_rejected") or ())]):
            if not drop or _fits(completion, context, (chosen, rejected), max_length):
                pair = _encode_pair(tokenizer, completion, context, chosen, rejected, max_length)
                (future if place else encoded).append(pair)
    if len(encoded) < len(rows):
        print(f"{len(rows) - len(encoded)} of {len(rows)} pairs are longer than {max_length} tokens: left out")
    return encoded, future


def _fits(completion: Encode, context: Sequence[Turn], replies: Sequence[str], max_length: int) -> bool:
    """Whether the context with each of the replies has at most `max_length` tokens."""
    both = (completion(tuple(context), text) for text in replies)
    return all(len(one.prompt) + len(one.reply) <= max_length for one in both)


def encode_pair(
    tokenizer: Tokenizer, context: Sequence[Turn], chosen: str, rejected: str, max_length: int
) -> dict[str, list[int]]:
    """Token ids of a pair, such that the context with either reply has at most `max_length` tokens.

    The context loses its oldest exchanges until the longer reply fits. At most half of `max_length` is reserved for the
    replies; a longer reply is cut at its end.

    Args:
        tokenizer: the base model's.
        context: the turns before the reply.
        chosen: text of the chosen reply.
        rejected: text of the rejected reply.
        max_length: tokens of context and reply together.

    Returns:
        `prompt_ids`, `chosen_ids` and `rejected_ids`.
    """
    return _encode_pair(tokenizer, partial(encode_completion, tokenizer), context, chosen, rejected, max_length)


def _encode_pair(
    tokenizer: Tokenizer,
    completion: Encode,
    context: Sequence[Turn],
    chosen: str,
    rejected: str,
    max_length: int,
) -> dict[str, list[int]]:
    """`encode_pair` by `completion`, which is `encode_completion` of the tokenizer."""
    whole = tuple(context)
    with_chosen, with_rejected = completion(whole, chosen), completion(whole, rejected)
    room = max_length - min(max(len(with_chosen.reply), len(with_rejected.reply)), max_length // 2)
    if (fitted := fit_context(tokenizer, whole, room)) != whole:
        with_chosen, with_rejected = completion(fitted, chosen), completion(fitted, rejected)
    return {
        "prompt_ids": with_chosen.prompt,
        "chosen_ids": _truncate(with_chosen, max_length),
        "rejected_ids": _truncate(with_rejected, max_length),
    }


def _truncate(completion: Completion, max_length: int) -> list[int]:
    return completion.reply[: max_length - len(completion.prompt)]
