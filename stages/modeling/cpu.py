"""What torch does slowly on a CPU in training, done otherwise: the same function, the same distribution."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def suit_cpu(model: Any) -> None:
    """Make a PeftModel or a plain model quicker to train on a CPU.

    - Attention by plain products. torch 2.13's fused kernel takes three times as long forward and backward at the
      lengths of dialogues, and still a quarter longer at 512 tokens.
    - Dropout of the adapters from four draws in one random number, see `quick_dropout`.
    """
    from torch import nn

    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    bare.set_attn_implementation("eager")
    for name, module in list(model.named_modules()):
        if name.endswith("lora_dropout") and isinstance(module, nn.ModuleDict):
            for key, dropout in module.items():
                if isinstance(dropout, nn.Dropout):
                    module[key] = quick_dropout()(dropout.p)


@cache
def quick_dropout() -> type[nn.Module]:
    """A module like `torch.nn.Dropout`, which took a quarter of a step: torch 2.13 draws a mask one number an element.

    Here one random integer of 64 bits, from the same generator, decides on four elements, with a probability that is
    `p` to 1 / 65,536.
    """
    import torch
    from torch import nn

    class QuickDropout(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.p = p

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training or self.p == 0:
                return x
            draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
            kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
            return x * kept * (1 / (1 - self.p))

        def extra_repr(self) -> str:
            return f"p={self.p}"

    return QuickDropout
