"""The last decoder layer, computed only at the indices whose hidden states are read.

The loss of a preference pair reads the hidden states that predict reply tokens, and nothing follows the last layer that
mixes tokens. Its keys and values are needed at all L indices, but the queries, the output projection of the attention
and the MLP only at the S indices that are read. In a model small enough for a CPU one layer is a good part of the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

ATTRIBUTE = "narrowed_last_layer"  # of the model; holds its NarrowedModules


class NarrowedModules:
    """Hooks on modules that treat each token alone: gather the inputs (1, L, H) to (1, S, H), scatter the outputs.

    With `indices` None the modules compute as before. Outputs are 0 outside of `indices`, so the layer's output is
    defined only there.
    """

    def __init__(self, *modules: nn.Module) -> None:
        """Put the hooks on `modules`."""
        self.indices: torch.Tensor | None = None
        self._length = 0
        for module in modules:
            module.register_forward_pre_hook(self._gather)
            module.register_forward_hook(self._scatter)

    def _gather(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.indices is None:
            return inputs
        states, *others = inputs
        self._length = states.shape[1]
        return (states.index_select(1, self.indices), *others)

    def _scatter(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self.indices is None:
            return output
        full = output.new_zeros(output.shape[0], self._length, output.shape[2])
        return full.index_copy(1, self.indices, output)


def narrow_last_layer(model: PreTrainedModel) -> None:
    """Put the hooks on the last layer of `model`, not a PeftModel, if it has Llama's modules. Idempotent."""
    layers: Any = getattr(getattr(model, model.base_model_prefix), "layers", None)
    if layers is None or hasattr(model, ATTRIBUTE):
        return
    last = layers[-1]
    setattr(model, ATTRIBUTE, NarrowedModules(last.self_attn.q_proj, last.self_attn.o_proj, last.mlp))


@contextmanager
def last_layer_at(model: PreTrainedModel, indices: torch.Tensor) -> Iterator[None]:
    """Within the context compute the last layer only at `indices`; no effect without `narrow_last_layer`.

    Args:
        model: its forward pass must end within the context, and with one sequence as input.
        indices: (S,) distinct indices into the sequence.
    """
    narrowed = getattr(model, ATTRIBUTE, None)
    if narrowed is None:
        yield
        return
    narrowed.indices = indices
    try:
        yield
    finally:
        narrowed.indices = None
