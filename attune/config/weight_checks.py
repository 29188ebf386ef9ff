"""Conditions that join the keys of section `model` or `encoder`: each source of weights reads its own."""

from __future__ import annotations

from attune.config.schema import NO_FOLDER, NO_REVISION, Model, Weights
from attune.runtime.errors import ParamsError

NEEDED = {"hub": ("hub_id", "revision"), "folder": ("folder",), "package": ("package",), "made": ()}
# Keys of other sources, which say that one of these was meant. What is not here may be left from the model in
# conf/model of which this is a copy or another edition: a folder keeps the `hub_id` that it was downloaded by.
OTHERS = {
    "hub": ("folder",),
    "folder": (),
    "package": ("hub_id", "revision", "folder"),
    "made": ("hub_id", "revision", "folder", "package", "file"),
}
SOURCE_OF = {"hub_id": "hub", "revision": "hub", "folder": "folder", "package": "package", "file": "package"}


def check_weights(weights: Weights, name: str, source: str) -> None:
    """Check that the keys which the source of a model or encoder needs are there, and that no other source was meant.

    Args:
        weights: of a model or encoder.
        name: its section.
        source: where the params came from, for the errors.

    Raises:
        ParamsError: a key is missing, or belongs to another source.
    """
    none = {"folder": NO_FOLDER[name], "revision": NO_REVISION[name]}
    missing = [key for key in NEEDED[weights.source] if getattr(weights, key) in (None, NO_FOLDER[name])]
    if missing:
        key = missing[0]
        raise ParamsError(f"{source}: {name}.{key} is missing for {name}.source = {weights.source!r}: name it")
    unread = [key for key in OTHERS[weights.source] if getattr(weights, key, None) not in (None, none.get(key))]
    if unread:
        key = unread[0]
        unset = " and ".join(f"{name}.{each} = {none.get(each) or 'null'}" for each in unread)
        raise ParamsError(
            f"{source}: {name}.{key} = {getattr(weights, key)!r} is not read with {name}.source = {weights.source!r}: "
            f"set {name}.source = {SOURCE_OF[key]}, or {unset}"
        )


def check_model_keys(model: Model, source: str) -> None:
    """Check what joins the keys of section `model` alone.

    Raises:
        ParamsError: two keys do not go together; names both.
    """
    _check_file(model, source)
    if model.as_decoder and model.source == "made":
        raise ParamsError(f"{source}: model.as_decoder = true needs an encoder: model.source = hub, folder or package")
    if model.stands_in_for is not None and not model.specialised:
        raise ParamsError(
            f"{source}: model.stands_in_for = {model.stands_in_for!r} is for what is compared as a specialised model: "
            "set model.specialised = true"
        )
    if model.quantization is not None and model.as_decoder:
        raise ParamsError(
            f"{source}: model.quantization = {model.quantization!r} is for pretrained models, and "
            "model.as_decoder = true makes one here: set model.quantization = null"
        )


def _check_file(model: Model, source: str) -> None:
    """A GGUF file is in a package, and its hash is no other model's."""
    if model.file is None:
        return
    named = f"{source}: model.file = {model.file!r}"
    if model.source == "package":
        if not model.file.endswith(".gguf"):
            raise ParamsError(
                f"{named}: a single file of a package is GGUF; null for a package that holds config.json, "
                "model.safetensors and tokenizer.json"
            )
        if model.as_decoder:
            raise ParamsError(f"{named}: model.as_decoder = true takes no GGUF file")
    elif model.package is None:
        raise ParamsError(
            f"{named} is read from an installed package alone: set model.source = package and model.package, or "
            "model.file = null"
        )
    elif model.sha256 is not None:
        raise ParamsError(
            f"{source}: model.sha256 = {model.sha256} is that of model.file = {model.file!r}, which is not read with "
            f"model.source = {model.source!r}: set model.sha256 = null, or model.file = null and model.sha256 to the "
            "hash of the model's own model.safetensors"
        )
