"""RMSNorm as one autograd step (Zhang and Sennrich 2019, equation 4): transformers' function and gradients.

For the states x (H,) of one token, the weight g (H,) and the constant e:

    r = 1 / sqrt(mean(x^2) + e)
    y = g * x * r                                             elementwise
    dx = r (g * dy) - x r^3 sum(g * dy * x) / H               the second term is the gradient through r

On a CPU a norm is bound by memory: transformers makes five tensors as large as the states in the forward pass and three
times as many in the backward pass. This takes half the passes over the states.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any


def patch_norms_for_cpu(model: Any) -> None:
    """Replace the forward of every RMSNorm like Llama's below `model` by `rms_norm`. Idempotent.

    transformers' forward still runs where the weight is trained or the states are not fp32.
    """
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
    """The autograd function of `(states, weight, epsilon)`, which returns y.

    states and y are (..., H) in fp32, weight is (H,) without gradient.
    """
    import torch

    class RmsNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: Any, weight: Any, epsilon: float) -> Any:
            """y, (..., H)."""
            # mean(x^2) from the vector norm, which reads the states once and writes no tensor of their size.
            norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
            scale = norm.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
            ctx.save_for_backward(states, weight, scale)
            return (states * scale).mul_(weight)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, d_y: Any) -> Any:
            """The gradient of the loss in the states, from `d_y`, its gradient in y; both (..., H)."""
            states, weight, scale = ctx.saved_tensors
            weighted = d_y * weight  # g * dy
            through_scale = (weighted * states).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(states.shape[-1])
            return weighted.mul_(scale).addcmul_(states, through_scale, value=-1), None, None

    return RmsNorm
