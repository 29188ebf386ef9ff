"""Attention by plain matrix products, without copies of the keys and values that several query heads share.

For one head, with Q (q, D), K and V (t, D), the additive mask M (q, t), the scaling s and optionally Gemma 2's softcap
c:

    S = s Q K^T            with a softcap  S = c tanh(s Q K^T / c)
    O = softmax(S + M) V   by rows

transformers' eager attention repeats K and V for every query head (`repeat_kv`), at every new token for the whole
cache. Here the queries of the heads that share K and V are rows of one product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GROUPED = "grouped"  # the name of this attention in transformers


def use(model: Any) -> None:
    """Have `model` attend this way, with the masks of transformers' eager attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(GROUPED, attend)
    AttentionMaskInterface.register(GROUPED, eager_mask)
    model.set_attn_implementation(GROUPED)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """An attention function of transformers.

    Args:
        module: the attention layer: whether it is training decides over dropout.
        query: (B, heads, q, D).
        key: (B, key heads, t, D), where the number of key heads divides the number of heads.
        value: as `key`.
        attention_mask: M, (B, 1, q, t), or None.
        scaling: the factor s.
        dropout: of the attention weights.
        softcap: the bound c of the scores.
        others: of other attention functions; not used.

    Returns:
        (B, q, heads, D), and the attention weights (B, heads, q, t).
    """
    import torch

    batch, heads, queries, size = query.shape
    shared, keys = key.shape[1], key.shape[2]
    # The heads that share a key head stand next to each other.
    scores = query.reshape(batch, shared, -1, size) @ key.transpose(2, 3) * scaling
    scores = scores.view(batch, heads, queries, keys)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
    states = (weights.view(batch, shared, -1, keys) @ value).view(batch, heads, queries, size)
    return states.transpose(1, 2).contiguous(), weights
