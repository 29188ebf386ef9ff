"""The interface of `attune/cpu`: other packages import from this file and from no other file of the folder.

Each function leaves a model on a GPU as it is, or returns None for it, so the caller has one code path and a reader who
trains on GPUs need not open the kernels. All kernels compute the function that they replace, up to rounding, and draw
dropout from the same distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attune.cpu import grouped_attention
from attune.cpu.casts import cache_casts, store_casts
from attune.cpu.document_attention import PER_DOCUMENT, document_lengths, document_masks, register
from attune.cpu.dropout import patch_dropout_for_cpu
from attune.cpu.last_layer import last_layer_at, narrow_last_layer
from attune.cpu.lora import patch_lora_for_cpu
from attune.cpu.norm import patch_norms_for_cpu
from attune.cpu.packed_weights import pack_weights
from attune.cpu.token_log_probs import chunk_tokens, cpu_token_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from attune.config.schema import Hardware

__all__ = [
    "chunk_tokens",
    "cpu_token_log_probs",
    "document_lengths",
    "document_masks",
    "inference",
    "last_layer_at",
    "optimize_for_cpu",
    "optimize_packing_for_cpu",
    "uses_varlen",
]


def optimize_for_cpu(model: Any, hardware: Hardware) -> None:
    """Make a PeftModel or a plain model train faster on a CPU. Idempotent.

    - Attention by plain matrix products (`grouped_attention`). torch 2.13's fused kernel takes three times as long,
      forward and backward, at the lengths of dialogues, and still a quarter longer at 512 tokens.
    - Dropout of the adapters, LoRA layers and norms by the kernels of `dropout`, `lora` and `norm`.
    - In bf16 no cast is made twice (`casts`).

    Args:
        model: on `compute.device`.
        hardware: device and precision; with another device than a CPU nothing is done.
    """
    if hardware.device != "cpu":
        return
    unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
    grouped_attention.use(unwrapped)
    patch_dropout_for_cpu(model)
    patch_lora_for_cpu(model)
    patch_norms_for_cpu(model)
    if hardware.precision == "bf16":
        cache_casts(unwrapped)


def optimize_packing_for_cpu(model: PreTrainedModel, hardware: Hardware) -> None:
    """Have `model`, not a PeftModel, take packed sequences faster on a CPU. Idempotent.

    Attention runs document by document (`document_attention`): from now on the model `uses_varlen`. The last layer is
    computed only where it is read (`last_layer`).

    Args:
        model: on `compute.device`.
        hardware: device and gradient checkpointing; with another device than a CPU nothing is done.
    """
    if hardware.device != "cpu":
        return
    register()
    model.set_attn_implementation(PER_DOCUMENT)
    # Not with checkpointing: its second forward pass runs after `last_layer_at` has ended.
    if not hardware.gradient_checkpointing:
        narrow_last_layer(model)


def uses_varlen(model: PreTrainedModel) -> bool:
    """True if `model`, not a PeftModel, attends per document: it takes one packed sequence without padding."""
    return model.config._attn_implementation == PER_DOCUMENT


@contextmanager
def inference(model: Any, hardware: Hardware) -> Iterator[None]:
    """Within the context a model that is no longer trained runs faster on a CPU, with the same numbers.

    It attends by plain matrix products: for one new token torch 2.13's fused kernel takes twice as long. Linear weights
    are stored as products need them: in bf16 as autocast would cast them, at every token if they are frozen; in fp32 in
    oneDNN's layout (`packed_weights`). That stays after the context: the model cannot be trained or saved any more.
    """
    before = model.config._attn_implementation
    if hardware.device == "cpu":
        grouped_attention.use(model)
        patch_norms_for_cpu(model.requires_grad_(False))
        if hardware.precision == "bf16":
            store_casts(model)
        else:
            pack_weights(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
