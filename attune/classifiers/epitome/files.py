"""The classifiers on disk: the folder that stage `epitome` writes, and the checkpoints that others published.

The folder holds the encoder's configuration and tokenizer, `seeker_encoder.safetensors` where the classifiers share it,
`<mechanism>.safetensors` with everything else under the names of the published layout (frozen layers are the seeker
encoder's, and in its file alone), and `epitome.json` (cut-off, frozen layers, and what explains the numbers).
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
    """Write `folder`, whole or not at all; `signature` is what explains the numbers, kept in `epitome.json`."""
    from safetensors.torch import save_file

    models = list(classifiers.models.values())
    seekers = {id(encoder_of(model, "seeker_encoder")) for model in models}
    with whole_folder(folder) as partial:
        partial.mkdir()
        if len(seekers) == 1:
            save_file(_part(models[0], seeker=True), partial / SHARED)
        for mechanism, model in classifiers.models.items():
            own = _part(model, seeker=False) | (_part(model, seeker=True) if len(seekers) > 1 else {})
            save_file(own, partial / f"{mechanism}.safetensors")
        encoder_of(models[0], "responder_encoder").config.save_pretrained(partial)
        classifiers.tokenizer.save_pretrained(str(partial))
        canonicalize_model_files(partial)
        settings = {"max_length": classifiers.max_length, "frozen_layers": frozen_layers(models[0])}
        write_json(partial / CONFIG, settings | dict(signature))


def load(folder: Path, hardware: Hardware) -> Classifiers:
    """Read what `save` wrote, onto `compute.device`.

    Raises:
        ModelError: a file is missing, or a file's parameters are not those of the classifier.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    names = [CONFIG, *(f"{mechanism}.safetensors" for mechanism in MECHANISMS)]
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing: run `dvc repro classifier@epitome`")
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    shared = load_file(folder / SHARED) if (folder / SHARED).is_file() else {}
    seeker = AutoModel.from_config(config)
    models = {}
    for mechanism in MECHANISMS:
        path = folder / f"{mechanism}.safetensors"
        own = seeker if shared else AutoModel.from_config(config)
        models[mechanism] = make_classifier(own, AutoModel.from_config(config), settings["frozen_layers"])
        fill(models[mechanism], shared | load_file(path), path)
        models[mechanism].to(hardware.device).eval()
        if hardware.dtype == "bf16":
            _cast_linear(models[mechanism])
    return Classifiers(models, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), settings["max_length"])


def _cast_linear(model: nn.ModuleDict) -> None:
    """Keep in bf16 what autocast would turn into it anew for every batch, since it remembers trained weights alone."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(torch.bfloat16)


def load_published(folder: Path, encoder: PreTrainedModel) -> dict[str, nn.ModuleDict]:
    """The three published checkpoints, as state dicts of the original layout (Sharma et al. 2020; Lee et al. 2022).

    Args:
        folder: holds `finetuned_ER.pth`, `finetuned_IP.pth` and `finetuned_EX.pth`.
        encoder: of the architecture that they were trained with (roberta-base); its weights are not used.

    Returns:
        The classifier of each mechanism; they share the seeker encoder where its weights are the same in all.

    Raises:
        ModelError: a file is missing, holds anything but tensors, or its parameters are not those of the classifier.
    """
    models = {}
    for mechanism, name in PUBLISHED.items():
        models[mechanism] = make_classifier(copy.deepcopy(encoder), copy.deepcopy(encoder))
        fill(models[mechanism], _read_published(folder / name), folder / name)
        models[mechanism].eval()
    first, *others = models.values()
    if all(_same(_part(first, seeker=True), _part(other, seeker=True)) for other in others):
        for other in others:
            other["seeker_encoder"] = first["seeker_encoder"]
    return models


def fill(model: nn.ModuleDict, state: State, path: Path) -> None:
    """Put `state` into `model`: every parameter, in its shape, and nothing else.

    Raises:
        ModelError: naming `path` and the first parameters that are missing, unknown or of another shape.
    """
    own = _part(model, seeker=True) | _part(model, seeker=False)
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [name for name in sorted(own.keys() & state.keys()) if own[name].shape != state[name].shape]
    for problem, found in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if found:
            raise ModelError(
                f"{path}: {len(found)} parameters are {problem}, such as {', '.join(found[:3])}: the section `encoder` "
                "must name the architecture that they were trained with"
            )
    model.load_state_dict(state, strict=False)  # the names of the frozen layers are not in it


def _read_published(path: Path) -> State:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: epitome.checkpoints names the folder that holds it") from None
    except (UnpicklingError, RuntimeError) as error:
        raise ModelError(f"{path} is no file of tensors alone, and nothing else is loaded: {error}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} is no state dict: it must map names to tensors")
    # A count from 0 that old versions of transformers stored with the weights.
    return {name: value for name, value in state.items() if not name.endswith(".embeddings.position_ids")}


def _part(model: nn.ModuleDict, seeker: bool) -> State:
    """The parameters of the seeker encoder, or all others, without those that are the seeker encoder's own."""
    state = model.state_dict()
    seekers = {k: v for k, v in state.items() if k.startswith("seeker_encoder.")}
    taken = {value.data_ptr() for value in seekers.values()}
    part = seekers if seeker else {k: v for k, v in state.items() if v.data_ptr() not in taken}
    return {k: v.cpu().contiguous() for k, v in part.items()}


def _same(one: State, other: State) -> bool:
    return all(value.equal(other[name]) for name, value in one.items())
