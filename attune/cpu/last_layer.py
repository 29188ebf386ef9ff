"""A decoder's last layer where only some places of a row are read off: the others take no part in what follows it.

Keys and values of the layer are needed everywhere, queries, the attention's output and the MLP only at the places that
predict a token. In the small models that fit a CPU one layer is a good part of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

ATTRIBUTE = "narrowed_last_layer"


class LastLayer:
    """Hooks on the modules of a layer that work on each place alone: what goes in is selected, what comes out spread.

    The layer's output is right at `places`, and undefined elsewhere.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.places: torch.Tensor | None = None
        self.length = 0
        for module in modules:
            module.register_forward_pre_hook(self._select)
            module.register_forward_hook(self._spread)

    def _select(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.places is None:
            return inputs
        states, *others = inputs
        self.length = states.shape[1]
        return (states.index_select(1, self.places), *others)

    def _spread(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self.places is None:
            return output
        whole = output.new_zeros(output.shape[0], self.length, output.shape[2])
        return whole.index_copy(1, self.places, output)


def narrow(model: PreTrainedModel) -> None:
    """Give the last layer of `model`, bare, its hooks, where it has Llama's modules. Idempotent."""
    layers: Any = getattr(getattr(model, model.base_model_prefix), "layers", None)
    if layers is None or hasattr(model, ATTRIBUTE):
        return
    last = layers[-1]
    setattr(model, ATTRIBUTE, LastLayer(last.self_attn.q_proj, last.self_attn.o_proj, last.mlp))


@contextmanager
def reading_at(model: PreTrainedModel, places: torch.Tensor) -> Iterator[None]:
    """Within, the last layer of a narrowed model is right at `places` (S,) of a single row; afterwards everywhere."""
    last = getattr(model, ATTRIBUTE, None)
    if last is None:
        yield
        return
    last.places = places
    try:
        yield
    finally:
        last.places = None
