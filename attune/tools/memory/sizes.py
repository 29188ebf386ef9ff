"""The sizes of a base model, its adapter and the optimizer state, computed without loading weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from attune.cpu.optimize import optimize_for_cpu, optimize_packing_for_cpu
from attune.models.loading import add_adapter
from attune.models.quantization import NF4_BYTES
from attune.models.tiny import from_config
from attune.training.common.packed_forward import prepare, unwrap_peft
from attune.training.sft.trainer import packs

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from attune.config.schema import Hardware, Params

Step = Literal["sft", "dpo"]


@dataclass(frozen=True)
class Size:
    """Sizes of a model with its adapter, without activations.

    `parameters` and `lora` are numbers of parameters; all other fields are bytes.
    """

    parameters: int
    lora: int
    weights: int
    adapter: int
    optimizer: int
    gathered: int = 0
    """FSDP: weights of two layers and the head, in the precision of a product, and the gradients of a layer."""

    @property
    def gradients(self) -> int:
        """Bytes of the gradients: one per weight of the adapter, in the same precision; DDP's buckets hold them."""
        return self.adapter

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.adapter + self.gradients + self.optimizer + self.gathered

    @property
    def loading(self) -> int:
        """Bytes at the start, when each rank holds the whole model and adapter."""
        return self.weights + self.adapter


def size(config: PretrainedConfig, params: Params) -> Size:
    """The sizes of the whole model as the stages load it on `compute.device`."""
    model = policy(config, params, "sft")
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return Size(
        parameters=sum(p.numel() for p in frozen),
        lora=sum(p.numel() for p in trained),
        weights=_bytes(frozen) if params.model.quantization is None else _quantized(model, frozen),
        adapter=_bytes(trained),
        optimizer=sum(_moments(p.numel(), params.hardware.optimizer) for p in trained),
    )


def of_rank(whole: Size, config: PretrainedConfig, hardware: Hardware) -> Size:
    """The sizes on one GPU: those of the whole model, or with FSDP its part, and what is gathered at once."""
    if not hardware.shards:
        return whole
    ranks, text, half = (
        hardware.processes * hardware.nodes,
        config.get_text_config(),
        2 if hardware.precision == "bf16" else 4,
    )
    words = text.vocab_size * text.hidden_size
    layer = (whole.parameters - words * (1 if text.tie_word_embeddings else 2) + whole.lora) // text.num_hidden_layers
    gradients = (half + 4) * whole.lora // text.num_hidden_layers
    return Size(
        parameters=whole.parameters,
        lora=whole.lora,
        weights=whole.weights // ranks,
        adapter=whole.adapter // ranks,
        optimizer=whole.optimizer // ranks,
        gathered=half * (2 * layer + words) + gradients,
    )


def _quantized(policy: Any, frozen: Sequence[torch.nn.Parameter]) -> int:
    """Bytes of weights with all adapted linear layers (not the head) in 4 bits, and the largest one dequantized."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [
        layer.get_base_layer().weight for layer in policy.modules() if isinstance(layer, BaseTunerLayer)
    ]
    short = sum(round(weight.numel() * NF4_BYTES) for weight in layers)
    return _bytes(frozen) - _bytes(layers) + short + max(_bytes([weight]) for weight in layers)


def _moments(weights: int, optimizer: str) -> int:
    """Bytes of AdamW's two moments: fp32, or 8 bits with a scale for 256 of them (Dettmers et al. 2022)."""
    # bitsandbytes keeps the moments of small tensors in fp32.
    if optimizer.endswith("8bit") and weights >= 4096:
        return 2 * (weights + 4 * -(-weights // 256))
    return 2 * 4 * weights


def policy(config: PretrainedConfig, params: Params, step: Step) -> Any:
    """The model with its adapter on the meta device, prepared as the stage prepares it."""
    import torch

    hardware = params.hardware
    with torch.device("meta"), quiet():
        model: Any = from_config(copy.deepcopy(config))
        if hardware.device == "cuda" and hardware.precision == "bf16":
            model = model.to(torch.bfloat16)
        made = add_adapter(model, params.lora, params.seed)
    if step == "sft":
        optimize_for_cpu(made, hardware)
        if packs(made, hardware):
            optimize_packing_for_cpu(unwrap_peft(made), hardware)
    elif hardware.device == "cpu":
        prepare(made, hardware, params.dpo.max_length)
    if hardware.gradient_checkpointing:
        # Fake tensors have no random state; that of dropout takes negligible memory.
        unwrap_peft(made).activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return made.train()


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings of transformers about each new model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
