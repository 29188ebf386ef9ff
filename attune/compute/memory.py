"""Out of memory: try again with smaller micro-batches in training, with smaller batches in generation and scoring."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from attune.compute.batching import batches_by_tokens
from attune.compute.process import glibc
from attune.runtime.distributed import rank, world_size
from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from attune.config.schema import Dpo, Hardware, Sft

Result = TypeVar("Result")


def retry_on_oom(attempt: Callable[[Hardware], Result], hardware: Hardware, section: Sft | Dpo) -> Result:
    """Return the result of `attempt`, called again with half the micro-batch size each time it runs out of memory.

    An attempt resumes from the last checkpoint. The effective batch stays the same, since gradients are accumulated
    over more micro-batches: without dropout the result differs by rounding only.

    Raises:
        ModelError: a single example does not fit, or one of several ranks ran out of memory.
    """
    while True:
        try:
            return attempt(hardware)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        if world_size() > 1:
            # The other ranks wait for this one inside the step that failed, so that no new attempt can start.
            raise ModelError(
                f"micro-batches of {hardware.micro_batch_size} do not fit into the memory of rank {rank()}: lower "
                "training.micro_batch_size"
            )
        name, size = type(section).__name__.lower(), min(hardware.micro_batch_size, section.batch_size)
        if size == 1:
            raise ModelError(
                f"an example of up to {section.max_length} tokens ({name}.max_length) does not fit into the memory of "
                f"{hardware.device}: lower it, or set training.gradient_checkpointing=true"
            )
        smaller = next(divisor for divisor in range(size // 2, 0, -1) if section.batch_size % divisor == 0)
        print(
            f"out of memory with micro-batches of {size}: continuing with {smaller} (training.micro_batch_size)",
            file=sys.stderr,
        )
        hardware = type(hardware)(**vars(hardware) | {"micro_batch_size": smaller})


def retry_batches_on_oom(lengths: Sequence[int], max_tokens: int, run_batch: Callable[[list[int]], None]) -> None:
    """Call `run_batch` for the batches of `batches_by_tokens`; where one does not fit, halve the batches that are left.

    Several ranks share the batches of one process: rank r runs every world_size-th batch, from batch r on.

    Args:
        lengths: tokens of each row.
        max_tokens: `decoding.batch_tokens`.
        run_batch: takes the row indices of a batch; called again for rows whose batch ran out of memory.

    Raises:
        ModelError: a single row does not fit.
    """
    share = list(batches_by_tokens(lengths, max_tokens))[rank() :: world_size()]
    left, batches = {row for batch in share for row in batch}, iter(share)
    while left:
        batch = next(batches)
        try:
            run_batch(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            left -= set(batch)
            continue
        free_memory()
        longest = max(lengths[row] for row in batch)
        if len(batch) == 1:
            raise ModelError(
                f"a row of {longest} tokens does not fit into memory by itself: lower generate.max_length, or "
                "pairs.max_new_tokens and dpo.max_length, where the model is sampled for pairs"
            )
        max_tokens = longest * (len(batch) // 2)
        print(f"out of memory: continuing with batches of {max_tokens} tokens (decoding.batch_tokens)", file=sys.stderr)
        batches = batches_by_tokens({row: lengths[row] for row in left}, max_tokens)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory: an exception class on a GPU, a RuntimeError with a known message on a CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Return the memory of unreferenced models and tensors to the system and to the driver of the GPU.

    On a CPU `set_up_process` makes glibc keep freed memory, in a heap with few gaps of the size of the next model:
    without this a second model in one process adds its whole size to the peak.
    """
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if (libc := glibc()) is not None:
        libc.malloc_trim(0)
