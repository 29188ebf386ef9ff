"""What every process that runs a model begins with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from stages.devices import keep_to_one_device
from stages.errors import UserError
from stages.ranks import rank, world_size

if TYPE_CHECKING:
    from stages.sections import Dpo, Hardware, Sft

Result = TypeVar("Result")


class ModelError(UserError):
    """A model cannot be had as the params name it."""


def set_up_process(hardware: Hardware) -> None:
    """Pin the number of threads, take a GPU of its own, and on a CPU let the allocator keep what it has freed.

    glibc returns every large tensor to the kernel and has each of its pages zeroed again at the next step: on two cores
    that was half of the time of a DPO step (sys beside user time). Values are not touched by it.

    Raises:
        ModelError: `hardware.device` is cuda and there is none.
    """
    import ctypes

    import torch

    if hardware.device == "cuda":
        keep_to_one_device()
        if not torch.cuda.is_available():
            raise ModelError("hardware.device = 'cuda', but no GPU is visible: compose with hardware=cpu")
    torch.set_num_threads(hardware.threads)
    if hardware.device == "cpu" and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
            libc.mallopt(mmap_max, 0)
            libc.mallopt(trim_threshold, 2**31 - 1)
            libc.mallopt(top_pad, 2**28)


def out_of_memory(error: Exception) -> bool:
    """Whether torch had no memory left: a class of its own on a GPU, words on a CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Give back what a failed attempt held, once nothing refers to it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halving(attempt: Callable[[Hardware], Result], hardware: Hardware, section: Sft | Dpo) -> Result:
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
