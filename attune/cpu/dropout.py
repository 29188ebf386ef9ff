"""Dropout with four mask elements from each random number.

torch 2.13 draws one random number per element on a CPU, which was a quarter of a training step. Here one integer of 64
bits from the same generator gives four of 16 bits. An element is kept with probability 1 - round(65,536 p) / 65,536,
which is 1 - p to within 1 / 131,072, and scaled by 1 / (1 - p) as in `torch.nn.Dropout`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def patch_dropout_for_cpu(model: nn.Module) -> None:
    """Replace the dropout of every LoRA adapter below `model` by `quick_dropout`. Idempotent."""
    from torch import nn

    for name, module in list(model.named_modules()):
        if name.endswith("lora_dropout") and isinstance(module, nn.ModuleDict):
            for key, dropout in module.items():
                if type(dropout) is nn.Dropout:
                    module[key] = quick_dropout()(dropout.p)


@cache
def quick_dropout() -> type[nn.Module]:
    """The module class, with the interface of `torch.nn.Dropout`."""
    import torch
    from torch import nn

    class Dropped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
            """`x` with elements dropped at rate `p` and the others scaled."""
            draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
            # 16 bits are uniform on -32,768 ... 32,767: the lowest round(65,536 p) of these values drop the element.
            kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
            ctx.save_for_backward(kept)
            ctx.scale = 1 / (1 - p)
            return _masked(x, kept).mul_(ctx.scale)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:
            """The gradient by the mask and scale of the forward pass."""
            (kept,) = ctx.saved_tensors
            return _masked(gradient, kept).mul_(ctx.scale), None

    # A subclass of nn.Dropout, so that code that disables dropout by its class (TRL's `disable_dropout`) finds it.
    class QuickDropout(nn.Dropout):
        def forward(self, x: torch.Tensor) -> Any:
            """`x`, with dropout in training."""
            return Dropped.apply(x, self.p) if self.training and self.p > 0 else x

    return QuickDropout


def _masked(x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """`x` where `kept`, 0 elsewhere."""
    import torch

    if x.dtype != torch.bfloat16:
        return x * kept
    # -1 has all bits set: a bitwise and with 0 or -1 takes half the time of a product or `torch.where` in bf16.
    return (x.contiguous().view(torch.int16) & kept.to(torch.int16).neg_()).view(torch.bfloat16)
