"""Casts to bf16 that are made once instead of at every use. The numbers are those of torch's autocast.

Autocast caches the cast of a trained weight for the length of a forward pass, but casts a frozen weight, and every
input, again at every use (torch, `cached_cast` in autocast_mode.cpp). PEFT casts the input of every adapter to fp32,
and autocast casts it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def cache_casts(model: Any) -> None:
    """Store the frozen linear weights of `model` in bf16, and cast an input that several adapters read once for all.

    The weight that the head may share with the embedding stays as it is. Idempotent.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    embedding = model.get_input_embeddings().weight
    shared_cast = SharedCast()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            adapted: Any = module
            adapted.cast_input_dtype_enabled = False
            if not any(isinstance(hook, SharedCast) for hook in adapted._forward_pre_hooks.values()):
                adapted.register_forward_pre_hook(shared_cast)
        elif type(module) is torch.nn.Linear and not module.weight.requires_grad and module.weight is not embedding:
            module.weight.data = module.weight.data.to(torch.bfloat16)


def store_casts(model: Any) -> None:
    """Store all linear weights of `model`, which is not trained any more, in bf16. Idempotent.

    A head that shares its weight with the embedding gets a weight of its own: the embedding stays in fp32.
    """
    import torch

    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32:
            module.weight = torch.nn.Parameter(module.weight.detach().to(torch.bfloat16), requires_grad=False)


class SharedCast:
    """A forward pre-hook that replaces an fp32 input by its cast to bf16, one tensor for all modules that read it."""

    def __init__(self) -> None:
        self.source: torch.Tensor | None = None
        self.cast: torch.Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs of `module` with the first, its states, cast under autocast."""
        import torch

        first, *others = inputs
        if first.dtype != torch.float32 or not torch.is_autocast_enabled("cpu"):
            return inputs
        if first is not self.source:
            self.source, self.cast = first, first.to(torch.bfloat16)
        return (self.cast, *others)


class CachedCast:
    """The cast of a weight, made again only for another weight or dtype, or once the weight has been written to."""

    def __init__(self) -> None:
        self.source: torch.Tensor | None = None
        self.version = 0
        self.cast: Any = None

    def __call__(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`weight` in `dtype`, without gradient."""
        if weight is not self.source or weight._version != self.version or self.cast.dtype != dtype:
            self.source, self.version, self.cast = weight, weight._version, weight.detach().to(dtype)
        return self.cast
