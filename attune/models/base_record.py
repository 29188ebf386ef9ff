"""The record of the base model, `models/base/base.json`: name, source and quantization.

A model of the hub or of a folder is recorded, not copied: every later stage loads the recorded commit from the hub's
cache, or the folder. A model of a package, or one that is made, is in `models/base` itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attune.config.schema import Model

RECORD = "base.json"


def base_record(model: Model, **details: Any) -> dict[str, Any]:
    """The record of a base model: its name and source, `details`, and the quantization of its weights, if any."""
    quantized = {"quantization": model.quantization} if model.quantization else {}
    return {"name": model.name, "source": model.source, **details, **quantized}


def origin(base: Path) -> tuple[str, str | None]:
    """The name of the base model's weights: (hub id, commit), or (folder, None)."""
    record = _read(base)
    match record["source"]:
        case "hub":
            return record["hub_id"], record["commit"]
        case "folder":
            return record["folder"], None
        case _:
            return str(base), None


def weights_folder(base: Path) -> Path:
    """The folder with the base model's files, in Hugging Face layout.

    Raises:
        ModelError: the recorded commit is not in the hub's cache and cannot be downloaded.
    """
    from attune.models.weights import snapshot

    name, commit = origin(base)
    return Path(name).expanduser() if commit is None else snapshot(name, commit)


def quantization(base: Path) -> str | None:
    """The quantization of the base model's linear layers: nf4, or None for none."""
    value: str | None = _read(base).get("quantization")
    return value


def _read(base: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((base / RECORD).read_text(encoding="utf-8"))
    return record
