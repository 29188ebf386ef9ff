"""The classifiers on disk: the folder `models/epitome`, and published checkpoints.

The folder holds the encoder's configuration and tokenizer, and `epitome.json`: maximum length, frozen layers, and the
origin of the classifiers. The seeker encoder is in `seeker_encoder.safetensors`, if the classifiers share it, and all
other weights in `<mechanism>.safetensors`, under their published names; frozen layers belong to the seeker encoder and
are in its file alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from attune.classifiers.epitome.model import MECHANISMS, Classifiers, encoder_of, frozen_layers, make_classifier
from attune.runtime.errors import ModelError
from attune.runtime.io import canonicalize_model_files, whole_folder, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from attune.config.schema import Hardware

    State = dict[str, torch.Tensor]

CONFIG = "epitome.json"
SHARED = "seeker_encoder.safetensors"
PUBLISHED = {
    "emotional_reactions": "finetuned_ER.pth",
    "interpretations": "finetuned_IP.pth",
    "explorations": "finetuned_EX.pth",
}


def save(classifiers: Classifiers, signature: Mapping[str, object], folder: Path) -> None:
    """Write `folder` atomically; `signature` explains the numbers and is stored in `epitome.json`."""
    from safetensors.torch import save_file

    models = list(classifiers.models.values())
    seekers = {id(encoder_of(model, "seeker_encoder")) for model in models}
    settings = {"frozen_layers": frozen_layers(models[0]), "max_length": classifiers.max_length}
    with whole_folder(folder) as partial:
        partial.mkdir()
        if len(seekers) == 1:
            save_file(_seeker_state(models[0]), partial / SHARED)
        for mechanism, model in classifiers.models.items():
            state = _other_state(model) | (_seeker_state(model) if len(seekers) > 1 else {})
            save_file(state, partial / f"{mechanism}.safetensors")
        encoder_of(models[0], "responder_encoder").config.save_pretrained(partial)
        classifiers.tokenizer.save_pretrained(str(partial))
        canonicalize_model_files(partial)
        write_json(partial / CONFIG, settings | dict(signature))


def load(folder: Path, hardware: Hardware) -> Classifiers:
    """Read what `save` wrote, onto `compute.device`, in eval mode and fp32.

    Raises:
        ModelError: a file is missing, or the parameters in it do not fit the classifier.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.initialization import no_init_weights

    settings = json.loads(_require(folder / CONFIG).read_text(encoding="utf-8"))
    paths = {mechanism: _require(folder / f"{mechanism}.safetensors") for mechanism in MECHANISMS}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    shared = load_file(folder / SHARED) if (folder / SHARED).is_file() else {}
    models = {}
    # Random weights of four encoders took a second; `fill` checks that every one is replaced.
    with no_init_weights():
        seeker = AutoModel.from_config(config)
        for mechanism in paths:
            encoder = seeker if shared else AutoModel.from_config(config)
            models[mechanism] = make_classifier(encoder, AutoModel.from_config(config), settings["frozen_layers"])
    for mechanism, path in paths.items():
        fill(models[mechanism], shared | load_file(path), path)
        models[mechanism].to(hardware.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return Classifiers(models, tokenizer, settings["max_length"])


def _require(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"{path} is missing: run `dvc repro classifier@epitome`")
    return path


def load_published(folder: Path, encoder: PreTrainedModel) -> dict[str, nn.ModuleDict]:
    """The three published checkpoints, state dicts in the original layout (Sharma et al. 2020; Lee et al. 2022).

    Args:
        folder: holds `finetuned_ER.pth`, `finetuned_IP.pth` and `finetuned_EX.pth`.
        encoder: of the architecture that they were trained with (roberta-base); its weights are not used.

    Returns:
        The classifier of each mechanism. They share the seeker encoder if its weights are equal in all three.

    Raises:
        ModelError: a file is missing, holds anything but tensors, or its parameters do not fit the classifier.
    """
    models = {}
    for mechanism, name in PUBLISHED.items():
        models[mechanism] = make_classifier(copy.deepcopy(encoder), copy.deepcopy(encoder))
        fill(models[mechanism], _read_published(folder / name), folder / name)
        models[mechanism].eval()
    first, *others = models.values()
    if all(_equal(_seeker_state(first), _seeker_state(other)) for other in others):
        for other in others:
            other["seeker_encoder"] = first["seeker_encoder"]
    return models


def fill(model: nn.ModuleDict, state: State, path: Path) -> None:
    """Load `state` into `model`; names and shapes must match exactly.

    Raises:
        ModelError: names `path` and the first parameters that are missing, unknown or of another shape.
    """
    expected = _seeker_state(model) | _other_state(model)
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [name for name in sorted(expected.keys() & state.keys()) if expected[name].shape != state[name].shape]
    for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if names:
            raise ModelError(
                f"{path}: {len(names)} parameters are {problem}, such as {', '.join(names[:3])}: the section `encoder` "
                "must name the architecture that they were trained with"
            )
    # Not strict: shared layers have a second name in the model, which `state` does not have.
    model.load_state_dict(state, strict=False)


def _read_published(path: Path) -> State:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: epitome.checkpoints names the folder that holds it") from None
    except (UnpicklingError, RuntimeError) as error:
        raise ModelError(f"{path} does not contain tensors only, and nothing else is loaded: {error}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} is not a state dict: it must map names to tensors")
    # A buffer, 0 to the maximum length, that old versions of transformers stored with the weights.
    return {name: value for name, value in state.items() if not name.endswith(".embeddings.position_ids")}


def _seeker_state(model: nn.ModuleDict) -> State:
    """The parameters of the seeker encoder."""
    return {k: v.cpu().contiguous() for k, v in model.state_dict().items() if k.startswith("seeker_encoder.")}


def _other_state(model: nn.ModuleDict) -> State:
    """All other parameters, without the layers that the responder encoder shares with the seeker encoder."""
    state = model.state_dict()
    shared = {value.data_ptr() for name, value in state.items() if name.startswith("seeker_encoder.")}
    return {k: v.cpu().contiguous() for k, v in state.items() if v.data_ptr() not in shared}


def _equal(first: State, second: State) -> bool:
    return all(value.equal(second[name]) for name, value in first.items())
