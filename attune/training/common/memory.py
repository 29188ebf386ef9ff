"""TODO."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from attune.compute.process import free_memory, out_of_memory
from attune.runtime.distributed import rank, world_size
from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from attune.config.schema import Dpo, Hardware, Sft


Result = TypeVar("Result")


def retry_on_oom(attempt: Callable[[Hardware], Result], hardware: Hardware, section: Sft | Dpo) -> Result:
    """What `attempt` returns, with micro-batches of half the size as often as one does not fit into memory.

    An attempt goes on from the last checkpoint. The effective batch is the same, gradients are accumulated over more
    micro-batches: without dropout the result is the same but for rounding.

    Raises:
        ModelError: one example by itself does not fit.
    """
    while True:
        try:
            return attempt(hardware)
        except Exception as error:
            if not out_of_memory(error):
                raise
        free_memory()
        if world_size() > 1:
            # The others wait for this rank in the step that it could not do.
            raise ModelError(
                f"micro-batches of {hardware.micro_batch_size} do not fit into the memory of rank {rank()}: lower "
                "hardware.micro_batch_size"
            )
        name, most = type(section).__name__.lower(), min(hardware.micro_batch_size, section.batch_size)
        if most == 1:
            raise ModelError(
                f"an example of up to {section.max_length} tokens ({name}.max_length) does not fit into the memory of "
                f"{hardware.device}: lower it, or set hardware.gradient_checkpointing=true"
            )
        smaller = next(size for size in range(most // 2, 0, -1) if section.batch_size % size == 0)
        print(
            f"out of memory with micro-batches of {most}: going on with {smaller} (hardware.micro_batch_size)",
            file=sys.stderr,
        )
        hardware = type(hardware)(**vars(hardware) | {"micro_batch_size": smaller})
