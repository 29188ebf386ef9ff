"""Log-probabilities of replies laid out in rows (`pair_rows`), from one forward pass of a causal language model.

Hidden states are gathered where a token of a reply is predicted, and only those are projected onto the vocabulary. How
a model is called, masked and read off depends on its architecture; `unsupported_reason` says for which this is known.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from attune.cpu.block_attention import PER_BLOCK, register, spans
from attune.cpu.last_layer import narrow, reading_at
from attune.cpu.optimize import optimize_for_cpu
from attune.cpu.token_log_probs import HeldCast, token_log_probs
from attune.models.loading import compile_layers
from attune.training.common.collate import IGNORED
from attune.training.dpo.packing import mask_function, visible

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from trl.trainer.utils import FusedCausalLMOutput

    from attune.config.schema import Hardware

# Decoders whose positions all come from `position_ids` and whose attention takes a mask made elsewhere; a test compares
# each with a plain forward pass.
SERVED = ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "bert")
FLEX = "flex_attention"
FLEX_FROM = 1024  # tokens of context and reply
ROWS = ("row_ids", "row_positions", "row_blocks", "row_parts")


def bare(model: Any) -> PreTrainedModel:
    """The transformers model inside a PeftModel, with the adapter's layers in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unsupported_reason(model: Any) -> str | None:
    """Why the model's pairs cannot be laid out in rows; None where they can."""
    config = bare(model).config
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompt tuning puts virtual tokens before every row"
    if config.model_type not in SERVED:
        return f"the architecture {config.model_type} is none of {', '.join(SERVED)}"
    if config.model_type == "bert" and not config.is_decoder:
        return "BERT looks both ways without is_decoder=True"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention looks both ways"
    return None


def prepare(model: Any, hardware: Hardware, max_length: int) -> None:
    """Set the model up for rows: what suits a CPU, and attention that skips what is masked.

    Idempotent. Not for a model that is `unsupported_reason`. On a CPU layers are not compiled: attention by block loops over
    numbers of each batch, for which a compiler would begin anew.

    Args:
        model: bare or a PeftModel.
        hardware: device and precision.
        max_length: of context and reply; FlexAttention pays in long rows only.
    """
    optimize_for_cpu(model, hardware)
    if hardware.device == "cpu":
        register()
        bare(model).set_attn_implementation(PER_BLOCK)
        # Not with checkpointing, whose second forward pass comes when the places are those of another batch.
        if not hardware.gradient_checkpointing:
            narrow(bare(model))
        return
    if max_length >= FLEX_FROM and _flex_compiles():
        bare(model).set_attn_implementation(FLEX)
    compile_layers(model, hardware)


def uses_varlen(model: PreTrainedModel) -> bool:
    """Whether `model`, bare, attends by block, so that all blocks of a batch are laid out in one row."""
    return model.config._attn_implementation == PER_BLOCK


def _flex_compiles() -> bool:
    """Whether FlexAttention compiles for this GPU, forward and backward; without it SDPA takes the dense mask."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    states = torch.randn(1, 1, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    try:
        torch.compile(flex_attention)(states, states, states).sum().backward()
    except Exception as error:  # a compiler's errors have no common class; SDPA gives the same numbers
        warnings.warn(f"FlexAttention does not compile here, SDPA runs instead: {error}", stacklevel=2)
        return False
    return True


def pair_output(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> FusedCausalLMOutput:
    """What TRL reads off a forward pass, for every token of every reply.

    Args:
        model: bare; with `unsupported_reason(model)` None.
        batch: of `pack`; in one row where the model `uses_varlen`.

    Returns:
        `log_probs`, `entropy`, `mean_logits` and `is_top1`, (N, R) each, 0 where a reply has ended.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    ids, positions = batch["row_ids"], batch["row_positions"]
    seen: dict[str, Any] = (
        {"blocks": spans(batch["row_blocks"], batch["row_parts"], positions)}
        if uses_varlen(model)
        else {"attention_mask": attention_masks(model, batch)}
    )
    scored = batch["targets"] != IGNORED
    places = batch["predictors"][scored]
    states = states_at(model, ids, positions, seen, places, places.unique())
    per_token = project(model, states, batch["targets"][scored])
    spread = {name: values.new_zeros(scored.shape).masked_scatter(scored, values) for name, values in per_token.items()}
    return FusedCausalLMOutput(**spread, label_mask=scored)


def states_at(
    model: PreTrainedModel,
    ids: torch.Tensor,
    positions: torch.Tensor,
    seen: dict[str, Any],
    places: torch.Tensor,
    distinct: torch.Tensor,
) -> torch.Tensor:
    """Hidden states (M, H) of rows `ids` (G, L) at `places` (M,), with what decides who sees whom; `distinct`: once."""
    backbone: Any = model.base_model
    with reading_at(model, distinct):
        hidden = backbone(input_ids=ids, position_ids=positions, use_cache=False, **seen).last_hidden_state
    # By index and not index_select, whose backward pass is not deterministic on a GPU where places repeat.
    found: torch.Tensor = hidden.flatten(0, 1)[places]
    return found


def project(model: PreTrainedModel, states: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Log-probability of each target and what is logged beside it.

    Args:
        model: bare.
        states: (M, H) hidden states.
        targets: (M,) token ids.
    """
    import torch
    from trl.kernels import ChunkedLogProbFunction

    head: Any = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    names = ("log_probs", "entropy", "mean_logits", "is_top1")
    if states.device.type == "cpu" and not head.weight.requires_grad:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
        # On the head itself, so that it ends with the model.
        weight = head.__dict__.setdefault("held_cast", HeldCast())(head.weight, dtype)
        return dict(zip(names, token_log_probs().apply(states, weight, head.bias, targets, softcap), strict=True))
    log_probs, entropy, _, mean_logits, is_top1 = ChunkedLogProbFunction.apply(
        states,
        head.weight,
        head.bias,
        targets,
        1.0,
        32768,
        softcap,
        1.0,
        names,
    )
    return {"log_probs": log_probs, "entropy": entropy, "mean_logits": mean_logits, "is_top1": is_top1}


def attention_masks(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Any:
    """The rows' mask in the form that the model takes: one, or one for each type of layer."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in kinds:
        windows = {"full_attention": None, "sliding_attention": window}
        return {kind: _mask(model, batch, windows[kind]) for kind in sorted(kinds)}
    return _mask(model, batch, window if config.model_type == "mistral" else None)


def _mask(model: PreTrainedModel, batch: dict[str, torch.Tensor], window: int | None) -> Any:
    import torch

    _, positions, blocks, parts = (batch[name] for name in ROWS)
    if model.config._attn_implementation == FLEX:
        from torch.nn.attention.flex_attention import create_block_mask

        rows, length = blocks.shape
        return create_block_mask(
            mask_function(blocks, parts, positions, window), rows, None, length, length, device=str(blocks.device)
        )
    seen = visible(blocks, parts, positions, window)
    dtype = torch.get_autocast_dtype(seen.device.type) if torch.is_autocast_enabled(seen.device.type) else model.dtype
    # Additive, since eager attention adds it as it is and SDPA would convert a boolean one anew in every layer.
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
