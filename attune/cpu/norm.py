"""RMSNorm as one step of autograd: transformers' function and gradients in half the passes over the states.

On a CPU a norm of a row of dialogues is bound by memory: transformers makes five tensors as large as the states forward
and three times as many backward.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any


def quicken_norms(model: Any) -> None:
    """Have every RMSNorm of Llama's kind below `model` whose weight is frozen compute as `rms_norm`. Idempotent."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_forward, module)


def _forward(module: Any, states: Any) -> Any:
    import torch

    if states.dtype != torch.float32 or module.weight.requires_grad:
        return type(module).forward(module, states)
    return rms_norm().apply(states, module.weight.detach(), module.variance_epsilon)


@cache
def rms_norm() -> Any:
    """The autograd function of `(states, weight, epsilon)`: states over their root mean square, times the weight.

    Zhang and Sennrich 2019, equation 4. States (…, H) in fp32; the weight (H) has no gradient.
    """
    import torch

    class Normed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: Any, weight: Any, epsilon: float) -> Any:
            length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
            scale = length.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
            ctx.save_for_backward(states, weight, scale)
            return (states * scale).mul_(weight)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            states, weight, scale = ctx.saved_tensors
            weighted = gradient * weight
            along = (weighted * states).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(states.shape[-1])
            return weighted.mul_(scale).addcmul_(states, along, value=-1), None, None

    return Normed
