"""Attention within the documents of one packed sequence, one document at a time.

On a CPU a masked score costs as much as one that is used. This attention never computes the scores between documents,
while the linear layers of the model still run on all tokens of a batch at once and without padding.

For one document of l tokens and one head, with Q, K, V (l, D), the additive mask M (l, l), the scaling s and
optionally Gemma 2's softcap c (K and V have b more rows, and M as many more columns, where all documents begin with the
same b tokens, which are the sequence's first document):

    S = s Q K^T            with a softcap  S = c tanh(s Q K^T / c)
    P = softmax(S + M)     by rows
    O = P V

The gradient, with dX for the gradient of the loss in X and * elementwise:

    dV = P^T dO
    dP = dO V^T
    dS = P * (dP - rowsum(dP * P))      with a softcap times 1 - tanh(s Q K^T / c)^2
    dQ = s dS K
    dK = s dS^T Q

With grouped queries, dK and dV are summed over the query heads that share a key head; those of a common beginning are
summed over the documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from attune.compute.packed_mask import packed_mask

if TYPE_CHECKING:
    import torch

PER_DOCUMENT = "per_document"  # the name of this attention in transformers


class DocumentMask:
    """The additive attention mask of one document, computed once for all layers."""

    def __init__(self, segments: torch.Tensor, positions: torch.Tensor, before: int = 0) -> None:
        """Take segments and positions, (b + l,) each, of the b shared tokens `before` the document and of its own."""
        self.segments, self.positions, self.before = segments, positions, before
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}

    def additive(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(l, b + l), 0 where the query (first axis) attends to the key (second axis), -inf elsewhere."""
        import torch

        if (window, dtype) not in self._masks:
            segments, positions = self.segments[None], self.positions[None]
            visible = packed_mask(torch.zeros_like(segments), segments, positions, window)[0, 0, self.before :]
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self._masks[window, dtype] = mask.masked_fill_(~visible, float("-inf"))
        return self._masks[window, dtype]


def document_lengths(documents: torch.Tensor) -> list[int]:
    """The number of tokens of each document, from the document numbers (1, L) of one sequence without padding."""
    import torch

    return list(torch.unique_consecutive(documents[0], return_counts=True)[1].tolist())


def document_masks(
    segments: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int], shared: bool
) -> list[DocumentMask]:
    """The masks of the documents in one packed sequence, in its order.

    Args:
        segments: (1, L) segment numbers.
        positions: (1, L) position ids.
        lengths: of `document_lengths`; they sum to L.
        shared: whether the first document is what all others begin with.
    """
    import torch

    first, *others = zip(segments[0].split(list(lengths)), positions[0].split(list(lengths)), strict=True)
    if not shared:
        return [DocumentMask(*document) for document in (first, *others)]
    joined = [[torch.cat(both) for both in zip(first, document, strict=True)] for document in others]
    return [DocumentMask(*first), *(DocumentMask(own, places, before=lengths[0]) for own, places in joined)]


def register() -> None:
    """Make `PER_DOCUMENT` known to transformers as an attention implementation."""
    from transformers import AttentionInterface

    AttentionInterface.register(PER_DOCUMENT, attend)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    documents: Sequence[DocumentMask],
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers; `documents` reaches it through the model's keyword arguments.

    Args:
        module: the attention layer; not used.
        query: (1, heads, L, D).
        key: (1, key heads, L, D), where the number of key heads divides the number of heads.
        value: as `key`.
        attention_mask: None.
        scaling: the factor s.
        documents: the masks of the documents, whose lengths sum to L.
        sliding_window: of the layer.
        softcap: the bound c of the scores.
        others: of other attention functions; not used.

    Returns:
        (1, L, heads, D), and None for the attention weights.
    """
    import torch

    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    masks = [document.additive(sliding_window, dtype) for document in documents]
    # Without autocast, which would cast bf16 to fp32 for softmax and back, with a copy each.
    with torch.autocast(device, enabled=False):
        states = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return document_attention().apply(*states, masks, scaling, softcap)[None], None


@cache
def document_attention() -> Any:
    """The autograd function of `(query, key, value, masks, scaling, softcap)`.

    query is (L, heads, D), key and value are (L, key heads, D); the masks, (l, l) or (l, b + l) each, are in the dtype
    to compute in, and their lengths sum to L. It returns (L, heads, D) in that dtype.

    It is one autograd step for all documents, because the small products of a document take less time than what
    autograd would add between them: copies, and sums of slices.
    """
    import torch

    class DocumentAttention(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, query: Any, key: Any, value: Any, masks: Sequence[Any], scaling: float, softcap: float | None
        ) -> Any:
            """The attention of every document to itself and a common beginning, joined to (L, heads, D)."""
            lengths, groups = [len(mask) for mask in masks], query.shape[1] // key.shape[1]
            inputs = (states.to(masks[0].dtype).split(lengths) for states in (query, key, value))
            outputs: list[Any] = []
            saved: list[Any] = []
            for *states, mask in zip(*inputs, masks, strict=True):
                q, k, v = (_heads_first(x, copies) for x, copies in zip(states, (1, groups, groups), strict=True))
                if mask.shape[1] > len(mask):
                    k, v = (torch.cat(both, 1) for both in zip(saved[1:3], (k, v), strict=True))
                output, weights, bounded = _attend_document(q, k, v, mask, scaling, softcap)
                outputs.append(output.transpose(0, 1))
                saved += [q, k, v, weights, bounded]
            ctx.save_for_backward(*saved)
            ctx.lengths, ctx.groups, ctx.scaling = lengths, groups, scaling
            ctx.dtypes = [states.dtype for states in (query, key, value)]
            return torch.cat(outputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, d_output: Any) -> Any:
            """The gradients in query, key and value, from `d_output`, (L, heads, D)."""
            saved = iter(ctx.saved_tensors)
            per_document = []
            for part in d_output.split(ctx.lengths):
                q, k, v, weights, bounded = (next(saved) for _ in range(5))
                d_part = _heads_first(part, 1)
                per_document.append(list(_attend_document_backward(d_part, q, k, v, weights, bounded, ctx.scaling)))
                _add_to_beginning(per_document)
            per_input = zip(*per_document, strict=True)
            gradients = (
                torch.cat([_heads_last(gradient, copies) for gradient in parts]).to(dtype)
                for parts, copies, dtype in zip(per_input, (1, ctx.groups, ctx.groups), ctx.dtypes, strict=True)
            )
            return *gradients, None, None, None

    return DocumentAttention


def _attend_document(q: Any, k: Any, v: Any, mask: Any, scaling: float, softcap: float | None) -> tuple[Any, Any, Any]:
    """O, P, both with (heads, l, ...), and tanh(s Q K^T / c) or None; q is (heads, l, D), k and v (heads, b + l, D)."""
    import torch

    if softcap is None:
        bounded = None
        scores = torch.baddbmm(mask.expand(len(q), *mask.shape), q, k.mT, alpha=scaling)
    else:
        bounded = torch.bmm(q, k.mT).mul_(scaling / softcap).tanh_()
        scores = bounded * softcap + mask
    weights = scores.softmax(-1)
    return torch.bmm(weights, v), weights, bounded


def _attend_document_backward(
    d_output: Any, q: Any, k: Any, v: Any, weights: Any, bounded: Any, scaling: float
) -> tuple[Any, Any, Any]:
    """dQ (heads, l, D), dK and dV (heads, b + l, D); the equations stand at the top of this file."""
    import torch

    # dS = P * (dP - rowsum(dP * P)) in one pass, which Python operations would take four for.
    d_scores = torch.ops.aten._softmax_backward_data(torch.bmm(d_output, v.mT), weights, -1, weights.dtype)
    if bounded is not None:
        d_scores.mul_(1 - bounded.square())
    # With beta=0 the first argument of baddbmm gives only the shape: this is how a product takes the factor s for free.
    d_query = torch.baddbmm(q, d_scores, k, beta=0, alpha=scaling)
    d_key = torch.baddbmm(k, d_scores.mT, q, beta=0, alpha=scaling)
    return d_query, d_key, torch.bmm(weights.mT, d_output)


def _add_to_beginning(gradients: Sequence[list[Any]]) -> None:
    """Add what the last document's dK and dV have for a common beginning to those of the first document, in place."""
    first, last = gradients[0], gradients[-1]
    for i in (1, 2):
        if before := last[i].shape[1] - last[0].shape[1]:
            first[i] += last[i][:, :before]
            last[i] = last[i][:, before:]


def _heads_first(states: Any, copies: int) -> Any:
    """(l, heads, D) as (heads * copies, l, D), with the copies of a head next to each other."""
    first = states.transpose(0, 1)
    return first.repeat_interleave(copies, 0) if copies > 1 else first.contiguous()


def _heads_last(gradient: Any, copies: int) -> Any:
    """The gradient (l, heads, D) of the input of `_heads_first`: summed over the copies."""
    summed = gradient.unflatten(0, (-1, copies)).sum(1) if copies > 1 else gradient
    return summed.transpose(0, 1)
