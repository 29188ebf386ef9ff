"""A LoRA layer as one autograd step (Hu et al. 2022, equation 3): PEFT's function and gradients with fewer passes.

With the frozen weight W (O, I), its bias b, the adapter A (r, I) and B (O, r), the scaling s, the input x and x', which
is x after dropout:

    y = W x + b + s B A x'

PEFT computes s (B (A x')) and the sum as tensors as large as y, once in the forward and twice in the backward pass. On
a CPU that takes as long as the products with A and B. Here the sums are made inside the matrix products (addmm).
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any


def patch_lora_for_cpu(model: Any) -> None:
    """Replace the forward of every LoRA layer on a linear layer below `model` by `lora_product`. Idempotent.

    PEFT's forward still runs where a layer is merged or disabled, has several active adapters, a variant of LoRA, or a
    base weight that is trained.
    """
    from peft.tuners.lora.layer import Linear

    for module in model.modules():
        if type(module) is Linear:
            layer: Any = module
            layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    import torch

    base, name = layer.get_base_layer(), layer.active_adapters[0]
    plain = not (args or kwargs or layer.disable_adapters or layer.merged or layer.lora_variant)
    if not plain or len(layer.active_adapters) != 1 or name not in layer.lora_A or base.weight.requires_grad:
        return type(layer).forward(layer, x, *args, **kwargs)
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    x = x.to(dtype)
    return lora_product().apply(
        x,
        layer.lora_dropout[name](x),
        base.weight.to(dtype),
        None if base.bias is None else base.bias.to(dtype),
        layer.lora_A[name].weight.to(dtype),
        layer.lora_B[name].weight.to(dtype),
        layer.scaling[name],
    )


@cache
def lora_product() -> Any:
    """The autograd function of `(x, dropped, weight, bias, a, b, scaling)`, which returns y, (..., O).

    x and dropped, which is x', are (..., I) and may be the same tensor; weight (O, I) and bias (O,) or None have no
    gradient; a is (r, I), b (O, r). All have one dtype.
    """
    import torch

    class LoraProduct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, dropped: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> Any:
            """y, (..., O)."""
            flat = dropped.flatten(0, -2)  # x' as (N, I)
            low = flat @ a.T  # x' A^T, (N, r)
            y = torch.nn.functional.linear(x, weight, bias)
            y.flatten(0, -2).addmm_(low, b.T, alpha=scaling)  # y += s (x' A^T) B^T
            ctx.save_for_backward(flat, low, weight, a, b)
            ctx.scaling, ctx.shape, ctx.same_input = scaling, x.shape, dropped is x
            return y

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, d_y: Any) -> Any:
            """The gradients in x, x', A and B, from `d_y`, the gradient of the loss in y."""
            # By rows, with dX for the gradient of the loss in X and u = x' A^T:
            #     du = s dy B      dA = du^T x'      dB = s dy^T u      dx' = du A      dx = dy W
            flat, low, weight, a, b = ctx.saved_tensors
            d_y = d_y.flatten(0, -2)
            d_low = (d_y @ b).mul_(ctx.scaling)
            d_a, d_b = d_low.T @ flat, (d_y.T @ low).mul_(ctx.scaling)
            if not ctx.needs_input_grad[0]:
                return None, None, None, None, d_a, d_b, None
            d_x = d_y @ weight
            d_dropped = None
            if ctx.same_input:
                d_x.addmm_(d_low, a)  # without dropout x' is x, and its gradient is the sum of both
            else:
                d_dropped = (d_low @ a).view(ctx.shape)
            return d_x.view(ctx.shape), d_dropped, None, None, d_a, d_b, None

    return LoraProduct
