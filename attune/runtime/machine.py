"""A description of the machine, for measurements of speed and recorded runs."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attune.runtime.devices import cpu_has_bf16


def commit() -> str:
    """The commit of the working directory, whole."""
    return subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, whether it multiplies in bf16, cores, GiB, GPU, and the versions of libraries that affect results."""
    import torch
    import transformers
    import trl

    return {
        "processor": next(_processors(), platform.machine()),
        "bf16": cpu_has_bf16(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }


def in_words(machine: Mapping[str, Any]) -> str:
    """Processor, cores, memory and GPU of what `machine` returned; records made before `bf16` was noted had it."""
    processor = machine["processor"] + ("" if machine.get("bf16", True) else " without bf16")
    return f"{processor}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['gpu'] or 'no GPU'}"


def _processors() -> Iterator[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    yield from (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
