"""Linear layers that are not trained any more, with weights in the layout in which oneDNN multiplies by them.

    y = x W^T + b          x (..., I), W (O, I), b (O,)

`nn.Linear` computes it by a product of dense matrices, which copies both into blocks at every call. When replies are
decoded x has a row for each reply, tens, and W thousands, so that most of what is copied is W. Here W is copied once.
torch's own compiler does the same with the weights of a frozen model (`torch/_inductor/fx_passes/mkldnn_fusion.py`),
by the operators that are used here.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

# Rows for which oneDNN chooses the layout: those of a batch that is being decoded. Any number of rows may follow.
ROWS = 32


def pack_weights(model: Any) -> None:
    """Have the linear layers of `model` with weights in fp32 multiply by packed weights. Idempotent.

    A layer keeps no other copy of its weight: the model cannot be trained, copied or saved any more. A head that shares
    its weight with the embedding gets one of its own, and the embedding keeps the dense one. A model with an adapter
    that is not merged stays as it is, since its products read dense weights (`lora`); so does every model where torch
    lacks the operators.
    """
    import torch

    adapted = any(name.endswith("base_layer") for name, _ in model.named_modules())
    if adapted or not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32 and not module.weight.is_mkldnn:
            linear: Any = module
            packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
            linear.weight = torch.nn.Parameter(packed, requires_grad=False)
            linear.forward = MethodType(_forward, linear)


def _forward(module: Any, states: Any) -> Any:
    import torch

    # torch would compute no gradient through it, and only warn.
    if torch.is_grad_enabled() and states.requires_grad:
        raise RuntimeError("the weights of this model are packed for inference: load it again to train it")
    return torch.ops.mkldnn._linear_pointwise(states, module.weight, module.bias, "none", [], "")
