"""Log-probabilities of the replies of a packed batch, from one forward pass of a causal language model.

1. The decoder runs on the packed sequences, with a mask or attention per document.
2. Hidden states are gathered at the indices that predict a token of a reply.
3. Only those are projected onto the vocabulary, and turned into log-probabilities of the targets.

How a model takes its mask and positions depends on its architecture; `unsupported_reason` tells which are supported.
"""

from __future__ import annotations

import functools
import types
import warnings
from typing import TYPE_CHECKING, Any

from attune.compute.packed_mask import packed_mask, packed_mask_mod
from attune.cpu.optimize import (
    cpu_token_log_probs,
    document_lengths,
    document_masks,
    last_layer_at,
    optimize_for_cpu,
    optimize_packing_for_cpu,
    uses_varlen,
)
from attune.models.loading import compile_layers
from attune.training.common.collate import IGNORED
from attune.training.common.packing import PACKED_KEYS, REPLY_KEYS, SHARED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from trl.trainer.utils import FusedCausalLMOutput

    from attune.config.schema import Hardware

# Decoders that take all positions from `position_ids` and accept a precomputed mask; a test compares each with a plain
# forward pass.
SUPPORTED_ARCHITECTURES = ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "bert")
FLEX = "flex_attention"
FLEX_MIN_LENGTH = 1024  # tokens of context and reply
VALUES = ("log_probs", "entropy", "mean_logits", "is_top1")


def unwrap_peft(model: Any) -> PreTrainedModel:
    """The transformers model inside a PeftModel, with the adapter's layers in it; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unsupported_reason(model: Any) -> str | None:
    """Why the model cannot take packed sequences, or None if it can.

    Args:
        model: a causal language model or a PeftModel on one.
    """
    config = unwrap_peft(model).config
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompt tuning puts virtual tokens before every sequence"
    if config.model_type not in SUPPORTED_ARCHITECTURES:
        return f"the architecture {config.model_type} is none of {', '.join(SUPPORTED_ARCHITECTURES)}"
    if config.model_type == "bert" and not config.is_decoder:
        return "BERT attends in both directions without is_decoder=True"
    if getattr(config, "use_bidirectional_attention", False):
        return "it attends in both directions"
    return None


def prepare(model: Any, hardware: Hardware, max_length: int) -> None:
    """Set the model up for packed sequences: CPU kernels, or attention that skips masked tiles and compiled layers.

    Idempotent. Only for a model whose `unsupported_reason` is None.

    Args:
        model: a causal language model or a PeftModel on one.
        hardware: device and precision.
        max_length: tokens of context and reply; FlexAttention is faster only in long sequences.
    """
    optimize_for_cpu(model, hardware)
    optimize_packing_for_cpu(unwrap_peft(model), hardware)
    if hardware.device == "cpu":
        # Not compiled: attention per document loops over lengths that differ in every batch, each a recompilation.
        return
    if max_length >= FLEX_MIN_LENGTH and _flex_compiles(head_size(unwrap_peft(model).config)):
        unwrap_peft(model).set_attn_implementation(FLEX)
    compile_layers(model, hardware)


def head_size(config: Any) -> int:
    """The size of an attention head: a GPU may have the memory for the tiles of a small one alone."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _flex_compiles(size: int) -> bool:
    """True if FlexAttention compiles for heads of `size` on this GPU, forward and backward; else SDPA runs."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    states = torch.randn(1, 1, 128, size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    try:
        torch.compile(flex_attention)(states, states, states).sum().backward()
    except Exception as error:  # a compiler's errors have no common class; SDPA gives the same numbers
        warnings.warn(f"FlexAttention does not compile here, SDPA runs instead: {error}", stacklevel=2)
        return False
    return True


def packed_output(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> FusedCausalLMOutput:
    """The forward pass on a packed batch, in the form that TRL's loss reads.

    Args:
        model: not a PeftModel, with `unsupported_reason(model)` None.
        batch: of `pack`, with `varlen` if the model `uses_varlen`.

    Returns:
        `log_probs` and `entropy` in nats, `mean_logits` and `is_top1`, (N, R) each, 0 after the end of a reply, and
        `label_mask`, true before it.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    in_reply = batch["targets"] != IGNORED
    indices = batch["predictors"][in_reply]
    states = states_at(model, batch, attention_arguments(model, batch), indices, indices.unique())
    values = project(model, states, batch["targets"][in_reply])
    per_reply = {
        name: value.new_zeros(in_reply.shape).masked_scatter(in_reply, value) for name, value in values.items()
    }
    return FusedCausalLMOutput(**per_reply, label_mask=in_reply)


def accept_packed_batches(model: Any) -> None:
    """Have `model` return `packed_output` for a batch of `pack`, and what it returned before for other inputs.

    Args:
        model: a causal language model, not a PeftModel. If it `uses_varlen`, it takes packed batches only.
    """
    plain = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """`packed_output` of a packed batch, the model's own output of any other."""
        if "packed_ids" not in kwargs:
            return plain(*args, **kwargs)
        return packed_output(self, {name: kwargs[name] for name in (*PACKED_KEYS, *REPLY_KEYS)})

    model.forward = types.MethodType(forward, model)


def states_at(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    attention: dict[str, Any],
    indices: torch.Tensor,
    distinct: torch.Tensor,
) -> torch.Tensor:
    """Hidden states (M, H) of the last layer at `indices`.

    Args:
        model: not a PeftModel.
        batch: of `pack`.
        attention: of `attention_arguments`.
        indices: (M,) into the flattened sequences; the replies of a context share one.
        distinct: the same indices, each once.
    """
    decoder: Any = model.base_model
    with last_layer_at(model, distinct):
        hidden = decoder(
            input_ids=batch["packed_ids"], position_ids=batch["packed_positions"], use_cache=False, **attention
        ).last_hidden_state
    # Indexing and not index_select, whose backward pass is not deterministic on a GPU where indices repeat.
    states: torch.Tensor = hidden.flatten(0, 1)[indices]
    return states


def project(model: PreTrainedModel, states: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """The log-probability of each target, the entropy, the mean logit and whether the target is the most likely token.

    Args:
        model: not a PeftModel.
        states: (M, H) hidden states.
        targets: (M,) token ids.

    Returns:
        `VALUES`, (M,) each; log-probability and entropy in nats.
    """
    from trl.kernels import ChunkedLogProbFunction

    head: Any = model.get_output_embeddings()
    sharded = _gather(head, states)
    softcap = getattr(model.config, "final_logit_softcapping", None)
    on_cpu = None if sharded else cpu_token_log_probs(states, head, targets, softcap)
    if on_cpu is not None:
        return dict(zip(VALUES, on_cpu, strict=True))
    temperature, chunk_size, logit_scale = 1.0, 32768, 1.0
    log_probs, entropy, _, mean_logits, is_top1 = ChunkedLogProbFunction.apply(
        states, head.weight, head.bias, targets, temperature, chunk_size, softcap, logit_scale, VALUES
    )
    return dict(zip(VALUES, (log_probs, entropy, mean_logits, is_top1), strict=True))


def _gather(head: Any, states: torch.Tensor) -> bool:
    """Have FSDP2 gather a head that it has sharded, which it does in the head's forward; whether it is sharded.

    Accelerate keeps it gathered until the backward pass has ended.
    """
    import torch

    sharded = hasattr(head.weight, "full_tensor")
    if sharded:
        with torch.no_grad():
            head(states[:0])
    return sharded


def attention_arguments(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The keyword arguments that tell the model which token attends to which (`attune.compute.packed_mask`).

    Args:
        model: not a PeftModel.
        batch: of `pack`.
    """
    if uses_varlen(model):
        lengths = document_lengths(batch["packed_documents"])
        shared = bool(batch["packed_documents"][0, 0] == SHARED)
        return {"documents": document_masks(batch["packed_segments"], batch["packed_positions"], lengths, shared)}
    return {"attention_mask": attention_masks(model, batch)}


def attention_masks(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Any:
    """The mask in the form that the model takes: one for all layers, or a dict with one for each type of layer."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in kinds:
        windows = {"full_attention": None, "sliding_attention": window}
        return {kind: _mask(model, batch, windows[kind]) for kind in sorted(kinds)}
    return _mask(model, batch, window if config.model_type == "mistral" else None)


def _mask(model: PreTrainedModel, batch: dict[str, torch.Tensor], window: int | None) -> Any:
    import torch

    structure = batch["packed_documents"], batch["packed_segments"], batch["packed_positions"]
    if model.config._attn_implementation == FLEX:
        from torch.nn.attention.flex_attention import create_block_mask

        sequences, length = batch["packed_ids"].shape
        mask_mod = packed_mask_mod(*structure, window)
        return create_block_mask(mask_mod, sequences, None, length, length, device=str(batch["packed_ids"].device))
    visible = packed_mask(*structure, window)
    device = visible.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    # Additive: eager attention adds it as it is, and SDPA would convert a boolean mask again in every layer.
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
