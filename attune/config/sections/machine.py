"""Sections on the machine, cut by what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from attune.config.sections.fields import Name, Positive, section
from attune.runtime.devices import cpu_has_bf16


@section
class Compute:
    """Device, precision and threads: what every stage that runs torch depends on."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["auto", "bf16", "fp32"]
    threads: Positive


@section
class Ranks:
    """The processes (ranks) that share a stage, and the file of Accelerate that says how they share a model."""

    processes: Positive
    nodes: Positive
    accelerate: Name | None


@section
class Training:
    """How a training step is computed; the effective batch does not depend on it."""

    micro_batch_size: Positive
    gradient_checkpointing: bool
    compile: bool
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]


@section
class Decoding:
    """Tokens in a batch of `generate`, and of samples of the policy."""

    batch_tokens: Positive


@section
class Runtime:
    """What changes no result beyond rounding: steps between checkpoints, where machines meet, the order of sums."""

    save_every: Positive
    rendezvous: Annotated[str, Field(pattern="^[^:]+:[0-9]+$")] | None
    deterministic: bool


@section
class Hardware(Compute, Ranks, Training, Decoding, Runtime):
    """The five sections as one object, for code that needs keys of several.

    Nothing here changes what is computed, beyond rounding. Exceptions: per-rank dropout masks, and 8-bit moments.
    """

    def having(self, **values: Any) -> Hardware:
        """These sections with other values of some keys."""
        return Hardware(**vars(self) | values)

    @property
    def shards(self) -> bool:
        """Whether training splits a model over the ranks (FSDP); by its file's name, as those of conf/accelerate."""
        return self.accelerate is not None and Path(self.accelerate).stem.startswith("fsdp")

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """What products are computed in: `dtype`, where `auto` is bf16 on a GPU, and on a CPU that multiplies in it."""
        if self.dtype != "auto":
            return self.dtype
        return "bf16" if self.device == "cuda" or cpu_has_bf16() else "fp32"
