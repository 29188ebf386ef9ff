"""Attention of a row of blocks, block by block: on a CPU, where a masked product costs as much as one that is seen.

transformers calls it as one of its attention functions, with the blocks of `row_blocks` among the model's keyword
arguments; the model's linear layers then run on all tokens of a batch, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from attune.training.dpo.packing import visible

if TYPE_CHECKING:
    import torch

PER_BLOCK = "per_block"


class Span:
    """The tokens of a block and who sees whom among them."""

    def __init__(self, parts: torch.Tensor, positions: torch.Tensor) -> None:
        self.length = len(parts)
        self.parts, self.positions = parts, positions
        self.masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(L, L), 0 where a token is seen and -inf elsewhere; made once for all layers."""
        import torch

        if (window, dtype) not in self.masks:
            parts, positions = self.parts[None], self.positions[None]
            seen = visible(torch.zeros_like(parts), parts, positions, window)[0, 0]
            hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self.masks[window, dtype] = hidden
        return self.masks[window, dtype]


def spans(blocks: torch.Tensor, parts: torch.Tensor, positions: torch.Tensor) -> list[Span]:
    """The blocks of a single row without padding, each (1, L) tensor of `pack`, in the order of the row."""
    import torch

    lengths = torch.unique_consecutive(blocks[0], return_counts=True)[1].tolist()
    return [Span(*one) for one in zip(parts[0].split(lengths), positions[0].split(lengths), strict=True)]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    blocks: Sequence[Span],
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers asks for it: query (1, heads, L, D), key and value with as many heads or a divisor.

    Returns:
        (1, L, heads, D).
    """
    import torch

    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    masks = [block.mask(sliding_window, dtype) for block in blocks]
    # Without autocast, which would take softmax out of bf16 and back, with a copy each.
    with torch.autocast(device, enabled=False):
        rows = (one[0].transpose(0, 1) for one in (query, key, value))
        return by_block().apply(*rows, masks, scaling, softcap)[None], None


@cache
def by_block() -> Any:
    """The autograd function of `(query, key, value, masks, scaling, softcap)`: attention within the blocks of a row.

    query (L, heads, D), key and value (L, heads or a divisor, D); the masks (l, l), in the dtype to compute in, have
    the lengths of the blocks, which sum to L. It returns (L, heads, D) in that dtype. One step, since the small
    products of a block take less time than autograd's own steps between them: copies, and sums of slices.
    """
    import torch

    class ByBlock(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, query: Any, key: Any, value: Any, masks: Sequence[Any], scaling: float, softcap: float | None
        ) -> Any:
            lengths, groups = [len(mask) for mask in masks], query.shape[1] // key.shape[1]
            kept, found = [], []
            rows = (one.to(masks[0].dtype).split(lengths) for one in (query, key, value))
            for *states, mask in zip(*rows, masks, strict=True):
                q, k, v = (_heads_first(one, n) for one, n in zip(states, (1, groups, groups), strict=True))
                if softcap is None:
                    bounded = None
                    scores = torch.baddbmm(mask.expand(len(q), *mask.shape), q, k.mT, alpha=scaling)
                else:
                    bounded = torch.bmm(q, k.mT).mul_(scaling / softcap).tanh_()
                    scores = bounded * softcap + mask
                weights = scores.softmax(-1)
                found.append(torch.bmm(weights, v).transpose(0, 1))
                kept += [q, k, v, weights, bounded]
            ctx.save_for_backward(*kept)
            ctx.lengths, ctx.groups, ctx.scaling = lengths, groups, scaling
            ctx.dtypes = [one.dtype for one in (query, key, value)]
            return torch.cat(found)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            kept = iter(ctx.saved_tensors)
            found: tuple[list[Any], ...] = ([], [], [])
            for of_out in gradient.split(ctx.lengths):
                q, k, v, weights, bounded = (next(kept) for _ in range(5))
                of_out = _heads_first(of_out, 1)
                of_scores = torch.ops.aten._softmax_backward_data(torch.bmm(of_out, v.mT), weights, -1, weights.dtype)
                if bounded is not None:
                    of_scores.mul_(1 - bounded.square())
                # With beta = 0 the first argument gives nothing but a shape.
                found[0].append(torch.baddbmm(q, of_scores, k, beta=0, alpha=ctx.scaling))
                found[1].append(torch.baddbmm(k, of_scores.mT, q, beta=0, alpha=ctx.scaling))
                found[2].append(torch.bmm(weights.mT, of_out))
            gradients = (
                torch.cat([_heads_last(one, n) for one in some]).to(dtype)
                for some, n, dtype in zip(found, (1, ctx.groups, ctx.groups), ctx.dtypes, strict=True)
            )
            return *gradients, None, None, None

    return ByBlock


def _heads_first(states: Any, copies: int) -> Any:
    """(l, heads, D) as (heads * copies, l, D), each head `copies` times behind each other."""
    first = states.transpose(0, 1)
    return first.repeat_interleave(copies, 0) if copies > 1 else first.contiguous()


def _heads_last(gradient: Any, copies: int) -> Any:
    """The gradient of what `_heads_first` was given."""
    summed = gradient.unflatten(0, (-1, copies)).sum(1) if copies > 1 else gradient
    return summed.transpose(0, 1)


def register() -> None:
    """Make `PER_BLOCK` known to transformers as an attention implementation."""
    from transformers import AttentionInterface

    AttentionInterface.register(PER_BLOCK, attend)
