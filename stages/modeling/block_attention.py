"""Attention of a row of blocks, block by block: on a CPU, where a masked product costs as much as one that is seen.

transformers calls it as one of its attention functions, with the blocks of `row_blocks` among the model's keyword
arguments; the model's linear layers then run on all tokens of a batch, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.modeling.pair_rows import visible

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
    """The blocks of a single row without padding, each (1, L) tensor of `lay_out`, in the order of the row."""
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
    groups = query.shape[1] // key.shape[1]
    # Without autocast, which would take softmax out of bf16 and back, with a copy each.
    with torch.autocast(device, enabled=False):
        scaled = (query[0] * scaling).to(dtype)
        keys, values = (one[0].to(dtype).repeat_interleave(groups, 0) if groups > 1 else one[0].to(dtype)
                        for one in (key, value))  # fmt: skip
        # Split, not sliced: of slices every gradient would be as long as the row.
        lengths = [block.length for block in blocks]
        parts = zip(blocks, *(one.split(lengths, dim=1) for one in (scaled, keys, values)), strict=True)
        found = []
        for block, q, k, v in parts:
            mask = block.mask(sliding_window, dtype)
            if softcap is None:
                scores = torch.baddbmm(mask.expand(len(q), *mask.shape), q, k.mT)
            else:
                scores = torch.tanh(q @ k.mT / softcap) * softcap + mask
            found.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(found)[None], None


def register() -> None:
    """Make `PER_BLOCK` known to transformers as an attention implementation."""
    from transformers import AttentionInterface

    AttentionInterface.register(PER_BLOCK, attend)
