"""The processes that run one stage together: which of them this one is, and what they tell each other.

torchrun's environment says it (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`); without it a process is rank 0 of 1, and nothing
here does anything. What ranks tell each other is JSON, so that none reads a pickle.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

Value = TypeVar("Value")
# Rank 0 may hash a model or write a checkpoint while the others wait; a rank that dies is noticed by the launcher.
PATIENCE = timedelta(hours=6)
LOST = 75  # EX_TEMPFAIL, sysexits.h


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes run the stage, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the process that writes what the stage makes."""
    return rank() == 0


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Within the block the ranks can tell each other things, and on a GPU each has its own.

    A rank that waits for one that has died ends with the exit status `LOST`.

    Args:
        device: of `hardware`.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    _end_with_the_launcher()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Texts and counts go from CPU to CPU on a GPU's machine, too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
        dist.barrier()
    except RuntimeError as error:
        # Gloo's errors have no class of their own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        print(f"rank {rank()} waited for a rank that has died", file=sys.stderr)
        sys.exit(LOST)
    finally:
        dist.destroy_process_group()


def all_gather(value: Value) -> list[Value]:
    """The `value` of each rank, something that JSON can hold, in the order of the ranks. All ranks must call it."""
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
    return [json.loads(bytes(one[: int(length)].tolist())) for one, length in zip(texts, lengths, strict=True)]


def gather_by_index(own: Mapping[int, Value]) -> dict[int, Value]:
    """What the ranks have found, each for indices of its own, as one. All ranks must call it."""
    if world_size() == 1:
        return dict(own)
    return {index: value for part in all_gather(list(own.items())) for index, value in part}


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
    """What `make` returns on rank 0, which alone calls it; the others wait. JSON must be able to hold it."""
    return all_gather(make() if is_main_process() else None)[0]  # type: ignore[return-value]


def on_main_process(act: Callable[[], object]) -> None:
    """Have rank 0 `act`, and the others wait until it has."""

    def done() -> None:
        act()

    broadcast_from_main(done)


def all_reduce_max(number: int) -> int:
    """The highest of the ranks' numbers. All ranks must call it."""
    if world_size() == 1:
        return number
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([number])
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def all_reduce_sum(number: int) -> int:
    """The sum of the ranks' numbers. All ranks must call it."""
    if world_size() == 1:
        return number
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([number])
    dist.all_reduce(tensor)
    return int(tensor)


def _end_with_the_launcher() -> None:
    """Be killed when the launcher is: its ranks have sessions of their own, which the kill of a group leaves alone.

    By SIGKILL, as the launcher was. SIGTERM would come once for each of its threads, and a second one ends at once.
    """
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
