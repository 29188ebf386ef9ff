"""Whether a run fits into the memory of its GPUs, and which changes would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from attune.config.schema import Params
from attune.tools.memory.footprint import kept
from attune.tools.memory.sizes import Step, of_rank, size
from attune.training.common.packed_forward import SUPPORTED_ARCHITECTURES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Share of a device's memory; the driver and fragmentation take the rest.
USABLE = 0.9
STEPS: tuple[Step, ...] = ("sft", "dpo")
# Ranks of LoRA below this one are not proposed.
LOWEST_RANK = 8


def steps_of(config: PretrainedConfig) -> tuple[Step, ...]:
    """The steps that have an estimate: DPO of an architecture that packing does not support has none."""
    return STEPS if config.model_type in SUPPORTED_ARCHITECTURES else STEPS[:1]


def share(params: Params, batch: int) -> int:
    """The examples of an effective batch that a rank has."""
    return max(1, batch // (params.hardware.processes * params.hardware.nodes))


def does_fit(config: PretrainedConfig, params: Params, memory: int) -> bool:
    """Whether SFT and DPO run as the params say, within `USABLE` of `memory` bytes on each GPU.

    A single process halves micro-batches that do not fit, down to one example; several ranks cannot.

    Args:
        config: of the base model.
        params: of the run.
        memory: of a GPU.
    """
    hardware, whole = params.hardware, size(config, params)
    several = hardware.processes * hardware.nodes > 1
    room = USABLE * memory
    if whole.loading > room:
        return False
    room -= of_rank(whole, config, hardware).fixed
    for step in steps_of(config) if room > 0 else ():
        micro = min(hardware.micro_batch_size, share(params, getattr(params, step).batch_size)) if several else 1
        if kept(config, params, step, hardware.gradient_checkpointing, micro).total > room:
            return False
    return room > 0


def proposals(config: PretrainedConfig, params: Params, memory: int) -> list[list[str]]:
    """The `changes` with which SFT and DPO fit.

    A change that fits is not combined with others, and of the ranks that fit the highest is named.
    """
    found: list[list[str]] = []
    for overrides in changes(params):
        if any(_keys(one) <= _keys(overrides) for one in found):
            continue
        if does_fit(config, changed(params, overrides), memory):
            found.append(overrides)
    return found


def _keys(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}


def changes(params: Params) -> list[list[str]]:
    """Lists of overrides that need less memory, in the order in which they are tried.

    Checkpointing and smaller micro-batches, which change no result, are part of all; then 8-bit moments, 4-bit weights,
    both, and lower ranks, alone and with both.
    """
    hardware = params.hardware
    free = [] if hardware.gradient_checkpointing else ["training.gradient_checkpointing=true"]
    if hardware.processes * hardware.nodes > 1 and hardware.micro_batch_size > 1:
        free.append("training.micro_batch_size=1")
    moments = [] if hardware.optimizer.endswith("8bit") else ["training.optimizer=paged_adamw_8bit"]
    no_bits = params.model.quantization or params.model.as_decoder or hardware.shards
    bits = [] if no_bits else ["model.quantization=nf4"]
    ranks = [params.lora.r >> halvings for halvings in range(1, params.lora.r.bit_length())]
    tried = [free, [*free, *moments], [*free, *bits], [*free, *bits, *moments]]
    for rank in (rank for rank in ranks if rank >= LOWEST_RANK):
        tried += [[*free, f"lora.r={rank}"], [*free, *bits, *moments, f"lora.r={rank}"]]
    return [one for number, one in enumerate(tried) if one and one not in tried[:number]]


def changed(params: Params, overrides: Sequence[str]) -> Params:
    """The params with the overrides of `changes`."""
    values = dict(override.split("=") for override in overrides)
    hardware, model, lora = params.hardware, dict(vars(params.model)), dict(vars(params.lora))
    hardware = hardware.having(
        optimizer=values.get("training.optimizer", hardware.optimizer),
        gradient_checkpointing=hardware.gradient_checkpointing or "training.gradient_checkpointing" in values,
        micro_batch_size=int(values.get("training.micro_batch_size", hardware.micro_batch_size)),
    )
    model["quantization"] = values.get("model.quantization", model["quantization"])
    lora["r"] = int(values.get("lora.r", lora["r"]))
    fewer = replace(params, model=type(params.model)(**model), lora=type(params.lora)(**lora))
    return fewer.with_hardware(hardware)
