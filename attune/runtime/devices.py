"""A GPU for each process: stages that run side by side, as the workers of a study do, do not share one.

Each takes the first GPU that no other has taken, and holds it by a lock that the kernel releases however the process
ends. The others are hidden from it, since transformers' Trainer would spread a batch over all that it sees.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

VISIBLE = "CUDA_VISIBLE_DEVICES"
# Open for as long as the process lives.
_held: list[IO[str]] = []


def take_device(visible: Sequence[str], folder: Path) -> str:
    """The first of the GPUs that no other process of this user has taken, else the first, which is shared then.

    Args:
        visible: GPUs as `CUDA_VISIBLE_DEVICES` names them.
        folder: of the locks, the same for all processes.
    """
    for device in visible:
        file = (folder / f"attune-{os.getuid()}-gpu-{device}.lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _held.append(file)
        return device
    return visible[0]


def keep_to_one_device() -> None:
    """Hide all GPUs from this process but one of its own, unless it is one of several ranks, which share them out."""
    import torch

    if _held or "LOCAL_RANK" in os.environ:
        return
    # Asked of the driver's management library: torch would fix what it sees when it asks CUDA.
    named = os.environ.get(VISIBLE)
    visible = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    if len(visible) > 1:
        os.environ[VISIBLE] = take_device(visible, Path(tempfile.gettempdir()))
