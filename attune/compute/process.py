"""Set up a process that runs a model: threads, device, allocator, and the precision of its forward passes."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from attune.runtime.devices import keep_to_one_device
from attune.runtime.errors import ModelError
from attune.runtime.imports import import_transformers

if TYPE_CHECKING:
    from ctypes import CDLL

    import torch

    from attune.config.schema import Hardware


def set_up_process(hardware: Hardware) -> None:
    """Set the number of threads, reserve one GPU for this process, and on a CPU let the allocator keep freed memory.

    By default glibc returns every large tensor to the kernel, which zeroes its pages again at the next step: on two
    cores that was half of the time of a DPO step (system time beside user time). Values do not depend on it.

    Raises:
        ModelError: `compute.device` is cuda and no GPU is visible, or the GPU has no bf16 where that is asked for.
    """
    import_transformers()
    import torch

    if hardware.device == "cuda":
        keep_to_one_device()
        if not torch.cuda.is_available():
            raise ModelError("compute.device = 'cuda', but no GPU is visible: compose with hardware=cpu")
        if hardware.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ModelError(
                f"compute.dtype = 'bf16', which {torch.cuda.get_device_name()} does not have (Ampere and later do): "
                "set compute.dtype=fp32; fp16 is not supported"
            )
        if hardware.deterministic:
            use_deterministic_kernels()
    torch.set_num_threads(hardware.threads)
    if hardware.device == "cpu" and (libc := glibc()) is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**28)


def glibc() -> CDLL | None:
    """The C library if it is glibc, whose allocator takes orders; None elsewhere (musl, other systems)."""
    import ctypes

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None


def use_deterministic_kernels() -> None:
    """Have torch take kernels that add in a fixed order, where it has them; a warning names an operation without one.

    SDPA's memory-efficient backward and index_add are among those that do not by default; cuBLAS needs a workspace.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def rank_device(hardware: Hardware) -> str:
    """`compute.device` with the number of this rank's GPU, without which safetensors reads onto the first."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if hardware.device == "cuda" else hardware.device


def autocast(hardware: Hardware) -> torch.autocast:
    """The context of a forward pass: bf16 autocast where `compute.dtype` is bf16, else a context without effect.

    Without gradients, use it with `torch.no_grad`. In `torch.inference_mode` autocast does not cache the casts of the
    weights, so that every weight is cast again at each use.
    """
    import torch

    return torch.autocast(hardware.device, dtype=torch.bfloat16, enabled=hardware.precision == "bf16")
