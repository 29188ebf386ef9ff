"""What every process that runs a model begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import UserError

if TYPE_CHECKING:
    from stages.params import Hardware


class ModelError(UserError):
    """A model cannot be had as the params name it."""


def set_up_process(hardware: Hardware) -> None:
    """Pin the number of threads, and on a CPU let the allocator keep what it has freed.

    glibc returns every large tensor to the kernel and has each of its pages zeroed again at the next step: on two cores
    that was half of the time of a DPO step (sys beside user time). Values are not touched by it.
    """
    import ctypes
    import sys

    import torch

    torch.set_num_threads(hardware.threads)
    if hardware.device == "cpu" and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
            libc.mallopt(mmap_max, 0)
            libc.mallopt(trim_threshold, 2**31 - 1)
            libc.mallopt(top_pad, 2**28)
