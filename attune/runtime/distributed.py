"""The ranks that run a stage together, and the collectives between them.

Rank and world size come from torchrun's environment (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`); without it the process is
rank 0 of 1, and the collectives return their argument. Values travel as JSON, so that no rank reads a pickle.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

Value = TypeVar("Value")
# Rank 0 may hash a model or write a checkpoint while the others wait; the launcher notices a rank that dies.
PATIENCE = timedelta(hours=6)
LOST = 75  # EX_TEMPFAIL, sysexits.h


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes that run the stage, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes the outs of the stage."""
    return rank() == 0


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the process group within the block; on GPUs each rank uses that of its local rank.

    A rank that waits for a dead rank exits with status `LOST`. No thread of the group outlives the block.

    Args:
        device: `compute.device`.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    # Gloo's threads end with the last reference to the group. One that still holds a tensor of the last collective when
    # the interpreter ends aborts the process (pytorch/pytorch#190489). Imported within the block, this module would
    # hold the group in the defaults of its functions.
    import torch.distributed.nn.functional

    _die_with_launcher()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # The collectives below use CPU tensors, also on a machine with GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
        dist.barrier()
    except RuntimeError as error:
        # Gloo raises plain RuntimeErrors.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        print(f"rank {rank()} waited for a rank that has died", file=sys.stderr)
        sys.exit(LOST)
    finally:
        dist.destroy_process_group()
        # A trainer and its DDP wrapper, which also hold the group, refer to each other.
        gc.collect()


def all_gather(value: Value) -> list[Value]:
    """The `value` of every rank, in the order of the ranks; JSON must be able to hold it. All ranks must call it."""
    if world_size() == 1:
        return [value]
    import torch
    import torch.distributed as dist

    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(text)]))
    longest = int(max(lengths))
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))))
    return [json.loads(bytes(padded[: int(length)].tolist())) for padded, length in zip(texts, lengths, strict=True)]


def gather_by_index(values: Mapping[int, Value]) -> dict[int, Value]:
    """The union of the ranks' values by index; their indices are disjoint. All ranks must call it."""
    if world_size() == 1:
        return dict(values)
    return {index: value for part in all_gather(list(values.items())) for index, value in part}


def shared_by_ranks(count: int, score: Callable[[list[int]], Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
    """Columns of (N,) scores, of which each rank computes its part. All ranks must call it.

    Args:
        count: N >= 1.
        score: from the indices of some rows to their columns; values that JSON can hold. Every rank calls it once.
    """
    # With fewer rows than ranks, some ranks score the last row again.
    indices = list(range(count))[rank() :: world_size()] or [count - 1]
    columns = {}
    for name, column in score(indices).items():
        values = gather_by_index(dict(zip(indices, column, strict=True)))
        columns[name] = [values[index] for index in range(count)]
    return columns


def broadcast_from_main(make: Callable[[], Value]) -> Value:
    """The result of `make` on rank 0, the only rank that calls it; the others wait. JSON must be able to hold it."""
    return all_gather(make() if is_main_process() else None)[0]  # type: ignore[return-value]


def on_main_process(act: Callable[[], object]) -> None:
    """Call `act` on rank 0 while the others wait."""

    def done() -> None:
        act()

    broadcast_from_main(done)


def all_reduce_max(number: int) -> int:
    """The maximum over the ranks. All ranks must call it."""
    if world_size() == 1:
        return number
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([number])
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def all_reduce_sum(number: int) -> int:
    """The sum over the ranks. All ranks must call it."""
    if world_size() == 1:
        return number
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([number])
    dist.all_reduce(tensor)
    return int(tensor)


def _die_with_launcher() -> None:
    """Have the kernel kill this rank when the launcher dies. Ranks lead their sessions: killing the group misses them.

    By SIGKILL: SIGTERM would arrive once for each thread of the launcher, and the second ends a rank at once.
    """
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
