"""The tokens that several sequences begin with, and their keys and values, computed once and shared by rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import DynamicCache


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all sequences begin with; of the shortest sequence at least one token is left."""
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False))
    return max(0, min(sum(1 for _ in alike), min(map(len, sequences)) - 1))


def prefix_cache(model: Any, tokens: Sequence[int]) -> DynamicCache:
    """The keys and values of these tokens, for one row; empty without tokens.

    It holds all tokens even for layers with a sliding window: the model's attention mask restricts them.

    Args:
        model: a causal language model that takes `logits_to_keep`; the caller sets precision and `no_grad`.
        tokens: the first ones of a sequence.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    if tokens:
        ids = torch.tensor([tokens], device=model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """The cache of one row for a batch of rows: views of the same memory, since a model appends by new tensors."""
    from transformers import DynamicCache

    expanded = DynamicCache()
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        expanded.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
    return expanded
