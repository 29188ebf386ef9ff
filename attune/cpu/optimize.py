"""What torch does slowly on a CPU in training, done otherwise: the same function, the same distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from attune.cpu.lora import patch_lora_for_cpu
from attune.cpu.norm import quicken_norms

if TYPE_CHECKING:
    import torch
    from torch import nn

    from attune.config.schema import Hardware


def optimize_for_cpu(model: Any, hardware: Hardware) -> None:
    """Make a PeftModel or a plain model quicker to train on a CPU. Idempotent; on a GPU nothing is done.

    - Attention by plain products. torch 2.13's fused kernel takes three times as long forward and backward at the
      lengths of dialogues, and still a quarter longer at 512 tokens.
    - Dropout of the adapters from four draws in one random number, see `quick_dropout`.
    - A LoRA layer and a norm as one step each, see `lora` and `norm`.
    - In bf16 no cast is made twice, see `_cast_once`.
    """
    if hardware.device != "cpu":
        return
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    bare.set_attn_implementation("eager")
    _replace_dropout(model)
    patch_lora_for_cpu(model)
    quicken_norms(model)
    if hardware.dtype == "bf16":
        _cast_once(bare)


@contextmanager
def plain_attention(model: Any, hardware: Hardware) -> Iterator[None]:
    """Attention by plain products on a CPU, where torch 2.13's fused kernel takes twice as long for one new token."""
    before = model.config._attn_implementation
    if hardware.device == "cpu":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _replace_dropout(model: nn.Module) -> None:
    from torch import nn

    for name, module in list(model.named_modules()):
        if name.endswith("lora_dropout") and isinstance(module, nn.ModuleDict):
            for key, dropout in module.items():
                if type(dropout) is nn.Dropout:
                    module[key] = quick_dropout()(dropout.p)


def _cast_once(model: Any) -> None:
    """Hold frozen weights in bf16, and cast what several linear layers read once for all of them; autocast's rounding.

    Autocast keeps the cast of a trained weight for the length of a forward pass, but makes that of a frozen one, and of
    every input, anew at every use (torch, cached_cast in autocast_mode.cpp); PEFT casts the input of every adapter to
    fp32, for autocast to cast it back.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    shared = model.get_input_embeddings().weight
    cast = SharedCast()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            adapted: Any = module
            adapted.cast_input_dtype_enabled = False
            if not any(isinstance(hook, SharedCast) for hook in adapted._forward_pre_hooks.values()):
                adapted.register_forward_pre_hook(cast)
        elif type(module) is torch.nn.Linear and not module.weight.requires_grad and module.weight is not shared:
            module.weight.data = module.weight.data.to(torch.bfloat16)


class SharedCast:
    """A forward pre-hook that hands an fp32 input on in bf16: the same tensor to all that read the same input."""

    def __init__(self) -> None:
        self.source: torch.Tensor | None = None
        self.cast: torch.Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of a layer's inputs the first is its states."""
        import torch

        first, *others = inputs
        if first.dtype != torch.float32 or not torch.is_autocast_enabled("cpu"):
            return inputs
        if first is not self.source:
            self.source, self.cast = first, first.to(torch.bfloat16)
        return (self.cast, *others)


@cache
def quick_dropout() -> type[nn.Module]:
    """A module like `torch.nn.Dropout`, which took a quarter of a step: torch 2.13 draws a mask one number an element.

    Here one random integer of 64 bits, from the same generator, decides on four elements, with a probability that is
    `p` to 1 / 65,536.
    """
    import torch
    from torch import nn

    class Dropped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
            draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
            kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
            ctx.save_for_backward(kept)
            ctx.scale = 1 / (1 - p)
            return masked(x, kept).mul_(ctx.scale)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:
            (kept,) = ctx.saved_tensors
            return masked(gradient, kept).mul_(ctx.scale), None

    def masked(x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.bfloat16:
            return x * kept
        # All bits of a number that is kept, none of the others: half the time of a product or `torch.where`.
        return (x.contiguous().view(torch.int16) & kept.to(torch.int16).neg_()).view(torch.bfloat16)

    # A subclass, so that what switches dropout off (TRL's `disable_dropout`) finds it.
    class QuickDropout(nn.Dropout):
        def forward(self, x: torch.Tensor) -> Any:
            return Dropped.apply(x, self.p) if self.training and self.p > 0 else x

    return QuickDropout
