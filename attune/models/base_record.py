"""The record of the base model, `models/base/base.json`: name, source, commit and quantization.

A hub model is recorded, not copied: the record names the id and the resolved commit, and every later stage loads that
commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from attune.config.schema import Model

RECORD = "base.json"


def base_record(model: Model, **source: Any) -> dict[str, Any]:
    """The record of a base model: its name, its `source`, and the quantization of its weights, if they have one."""
    return {"name": model.name, **source, **({"quantization": model.quantization} if model.quantization else {})}


def hub_record(model: Model) -> dict[str, Any]:
    """The record of a hub model: id, revision as configured, and the commit that the revision resolves to now.

    Raises:
        ModelError: the hub cannot be reached, or has no such model or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    assert model.hub_id is not None
    try:
        info = HfApi().model_info(model.hub_id, revision=model.revision)
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"model.hub_id = {model.hub_id!r} at revision {model.revision!r} cannot be resolved: {error}. "
            "Check the id, the network and HF_TOKEN, or compose with model=tiny"
        ) from None
    return base_record(model, hub_id=model.hub_id, revision=model.revision, commit=info.sha)


def origin(base: Path) -> tuple[str, str | None]:
    """Where the weights of the base model are: (folder or hub id, commit)."""
    record = _read(base)
    return (record["hub_id"], record["commit"]) if record["hub_id"] else (str(base), None)


def quantization(base: Path) -> str | None:
    """The quantization of the base model's linear layers: nf4, or None for none."""
    value: str | None = _read(base).get("quantization")
    return value


def _read(base: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((base / RECORD).read_text(encoding="utf-8"))
    return record
