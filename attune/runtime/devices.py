"""What a processor can do, and one GPU for each process.

Stages that run in parallel, such as the experiments of a study, do not share a GPU. Each process locks the first free
GPU by a file lock, which the kernel releases in whatever way the process ends. The other GPUs are hidden from it, since
transformers' Trainer would use DataParallel on all visible GPUs.
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
    """The first GPU that no other process of this user has locked; if all are locked, the first is shared.

    Args:
        visible: GPUs as `CUDA_VISIBLE_DEVICES` names them.
        folder: for the locks, the same for all processes.
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
    """Hide all GPUs except one from this process, unless it is a rank, which uses the GPU of its local rank."""
    import torch

    if _held or "LOCAL_RANK" in os.environ:
        return
    # device_count asks NVML: initializing CUDA would fix the visible devices.
    named = os.environ.get(VISIBLE)
    visible = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    if len(visible) > 1:
        os.environ[VISIBLE] = take_device(visible, Path(tempfile.gettempdir()))


def cpu_has_bf16() -> bool:
    """Whether torch multiplies bf16 matrices by instructions for it: AVX512-BF16, AMX, or ARM's by oneDNN.

    Elsewhere torch has a loop for them, a hundred times slower than fp32 (docs/performance.md).
    """
    import torch

    known = torch.cpu.get_capabilities()
    x86 = known.get("avx512_bf16", False) or known.get("amx_bf16", False)
    return bool(x86 or (known.get("bf16", False) and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
