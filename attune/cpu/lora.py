"""A LoRA layer as one step of autograd: PEFT's function and gradients, with the sums made inside of the products.

PEFT writes `W x + (B (A x)) * scaling`: the scaled product and the sum are tensors as large as the output, once forward
and twice backward, which on a CPU take as long as the adapter's own products.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any


def patch_lora_for_cpu(model: Any) -> None:
    """Have every LoRA layer of linear layers below `model` compute as `lora_product`. Idempotent.

    Layers that are merged, switched off, or of another kind than plain LoRA with one active adapter and a frozen base
    weight keep PEFT's forward.
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
    """The autograd function of `(x, dropped, weight, bias, a, b, scaling)`: `weight x + bias + scaling b (a dropped)`.

    x and dropped (…, I), which may be one tensor, weight (O, I) and bias (O) without gradient, a (r, I), b (O, r); all
    of one dtype.
    """
    import torch

    class LoraProduct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, dropped: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> Any:
            flat = dropped.flatten(0, -2)
            low = flat @ a.T
            found = torch.nn.functional.linear(x, weight, bias)
            found.flatten(0, -2).addmm_(low, b.T, alpha=scaling)
            ctx.save_for_backward(flat, low, weight, a, b)
            ctx.scaling, ctx.shape, ctx.one_input = scaling, x.shape, dropped is x
            return found

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            flat, low, weight, a, b = ctx.saved_tensors
            gradient = gradient.flatten(0, -2)
            below = (gradient @ b).mul_(ctx.scaling)
            of_a, of_b = below.T @ flat, (gradient.T @ low).mul_(ctx.scaling)
            if not ctx.needs_input_grad[0]:
                return None, None, None, None, of_a, of_b, None
            of_x = gradient @ weight
            of_dropped = None
            if ctx.one_input:
                of_x.addmm_(below, a)
            else:
                of_dropped = (below @ a).view(ctx.shape)
            return of_x.view(ctx.shape), of_dropped, None, None, of_a, of_b, None

    return LoraProduct
