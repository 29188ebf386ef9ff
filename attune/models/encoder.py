"""Load a bidirectional encoder from an installed package, or from the hub at a fixed revision.

The encoder is the base of the classifiers and BERTScore (section `encoder`), or becomes a decoder (section `model`).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from attune.compute.process import set_up_process
from attune.runtime.errors import ModelError
from attune.runtime.io import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Encoder, Hardware, Model

WEIGHTS = "model.safetensors"
# Cached, since a stage needs the hash several times and the file does not change while it runs.
_hash = cache(sha256_of)


def load_encoder(encoder: Encoder, hardware: Hardware) -> tuple[PreTrainedModel, Tokenizer]:
    """The encoder with fp32 weights on `compute.device`, in eval mode, and its fast tokenizer (which has offsets).

    Raises:
        ModelError: the package is not installed or has no weights, the hub has no such model or cannot be reached, the
            hash of the weights is not the pinned one, or `compute.device` is cuda and no GPU is visible.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    set_up_process(hardware)
    folder = str(checked_weights(encoder).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    return model.to(hardware.device).eval(), tokenizer


def encoder_signature(encoder: Encoder | Model) -> dict[str, str]:
    """The signature of metrics that use the encoder: its name, its source, and the hash of its weights.

    Raises:
        ModelError: as `load_encoder`.
    """
    weights = checked_weights(encoder)
    origin = f"{encoder.package} {version(encoder.package)}" if encoder.package else encoder.revision
    return {"encoder": encoder.name, "encoder_origin": str(origin), "encoder_sha256": _hash(weights)}


def checked_weights(encoder: Encoder | Model) -> Path:
    """The safetensors file of the encoder; configuration and tokenizer are in the same folder.

    Raises:
        ModelError: as `load_encoder`.
    """
    section = type(encoder).__name__.lower()
    path = _package_weights(encoder.package, section) if encoder.package else _hub_weights(encoder, section)
    if encoder.sha256 not in (None, actual := _hash(path)):
        raise ModelError(f"{path}: sha256 is {actual}, but {section}.sha256 pins {encoder.sha256}: install it again")
    return path


def _package_weights(package: str, section: str) -> Path:
    """The weights inside an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None:
        raise ModelError(f"{section}.package = {package!r} is not installed: run `make setup`")
    paths = [path for root in spec.submodule_search_locations or [] for path in sorted(Path(root).rglob(WEIGHTS))]
    if not paths:
        raise ModelError(f"{section}.package = {package!r} holds no {WEIGHTS}")
    return paths[0]


def _hub_weights(encoder: Encoder | Model, section: str) -> Path:
    """The weights in the hub's cache; downloads them with configuration and tokenizer if they are missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    assert encoder.hub_id is not None  # config.checks requires a package or a hub id
    try:
        folder = snapshot_download(
            encoder.hub_id, revision=encoder.revision, allow_patterns=["*.json", "*.txt", WEIGHTS]
        )
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{section}.hub_id = {encoder.hub_id!r} at revision {encoder.revision!r} cannot be loaded: {error}. "
            f"Check the id and the network, or compose with {section}=minilm"
        ) from None
    path = Path(folder, WEIGHTS)
    if not path.is_file():
        raise ModelError(
            f"{section}.hub_id = {encoder.hub_id!r} has no {WEIGHTS} at revision {encoder.revision!r}: name a revision "
            "that has one (the hub keeps conversions as pull requests), since pickled weights are not loaded"
        )
    return path
