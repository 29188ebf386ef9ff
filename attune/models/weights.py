"""Find a model's files at their source: in the hub's cache, a folder, or an installed package.

Files are in Hugging Face layout: config.json, tokenizer.json, and weights as safetensors; pickled weights are refused.
A package may hold a GGUF file instead (`attune.models.gguf`).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import ModelError, UserError, reason
from attune.runtime.hub import commit_of, hub_errors
from attune.runtime.io import sha256_of

if TYPE_CHECKING:
    from attune.config.schema import Model, Weights

WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
CONFIG, TOKENIZER = "config.json", ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
LAYOUT = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
# The same weights once more, in the original format of Mistral and Llama.
DUPLICATES = ["consolidated*", "original/*"]
LOCAL = "source = folder a local folder"
# Instead, where a section has no source but the hub.
OWN_LOCAL = {"bertscore": "bertscore.hub_id = null the encoder of section encoder"}
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
# Cached, since a stage needs the hash several times and the file does not change while it runs.
file_hash = cache(sha256_of)


def layout(weights: Weights, section: str) -> Path:
    """The folder with a model in Hugging Face layout; downloads a hub model that is not in the cache.

    Args:
        weights: of source hub, folder or package.
        section: of params.yaml, for the errors.

    Raises:
        ModelError: there is no such model, the hub cannot be reached, weights are pickled or missing, or their hash is
            not `sha256`.
    """
    match weights.source:
        case "hub":
            folder = snapshot(str(weights.hub_id), commit(weights, section))
        case "folder":
            folder = Path(weights.folder).expanduser()
            if not folder.is_dir():
                raise ModelError(
                    f"{section}.folder = {weights.folder!r} is no folder: name one with {CONFIG} and {WEIGHTS}"
                )
        case _:
            folder = package_file(weights, section, WEIGHTS).parent
    check_pin(weights, weight_files(folder), section)
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`, all shards.

    Raises:
        ModelError: config.json or the tokenizer is missing, the weights are pickled, or a file is missing.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} holds no {CONFIG}: name the folder of a model in Hugging Face layout")
    if not any((folder / name).is_file() for name in TOKENIZER):
        raise ModelError(f"{folder} holds no tokenizer ({TOKENIZER[0]}): save it there with tokenizer.save_pretrained")
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / SHARDS).is_file():
        with file_errors(folder):
            index = json.loads((folder / SHARDS).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        why = f" but {pickled[0]}, pickled weights, which are not loaded since they can run code" if pickled else ""
        raise ModelError(
            f"{folder} holds no {missing[0]}{why}: save the model with model.save_pretrained, which writes "
            "safetensors, or name a revision that has them (the hub keeps conversions as pull requests)"
        )
    return [folder / name for name in names]


@contextmanager
def file_errors(folder: Path) -> Iterator[None]:
    """Within the block, an error of transformers about the files in `folder` becomes a ModelError.

    Damaged files raise what they happen to: KeyError for a tokenizer.json without a key, a plain Exception of
    tokenizers for one of another form. A RuntimeError is torch's, of memory.
    """
    try:
        yield
    except (UserError, RuntimeError, MemoryError):
        raise
    except Exception as error:
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        # The other lines of the message say how to run remote code.
        raise ModelError(
            f"the model in {folder} cannot be loaded: {kind}{reason(error)}. Save it again with save_pretrained, or "
            "take one with safetensors that transformers knows; no pickled weights are loaded, and no code that comes "
            "with a model is run"
        ) from None


def folder_hash(folder: Path) -> str:
    """A hash of names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in _layout_files(folder):
        digest.update(f"{path.name}\n{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _layout_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in LAYOUT for path in folder.glob(pattern) if path.is_file()})


def copy_layout(folder: Path, target: Path) -> Path:
    """Copy a model's files to the new folder `target`; the first file of its weights in `folder`."""
    target.mkdir(parents=True)
    for path in _layout_files(folder):
        shutil.copyfile(path, target / path.name)
    return weight_files(folder)[0]


def checked_gguf(model: Model) -> Path:
    """The GGUF file `file` of an installed package, its hash compared with `sha256`.

    Raises:
        ModelError: the package or the file is missing, or it has another hash.
    """
    path = package_file(model, "model", str(model.file))
    check_pin(model, [path], "model")
    return path


def package_file(weights: Weights, section: str, name: str) -> Path:
    """The file `name` in an installed package, found without importing the package.

    Raises:
        ModelError: the package is not installed, or holds no such file.
    """
    assert weights.package is not None  # config.weight_checks
    spec = _spec(weights.package)
    if spec is None:
        imported = re.sub(r"\W+", "_", weights.package)
        remedy = "run `make setup`, or install it; the key takes the name by which Python imports a package"
        if _spec(imported) is not None:
            remedy = f"Python imports it as {imported}: set {section}.package = {imported}"
        raise ModelError(f"{section}.package = {weights.package!r} is not installed: {remedy}")
    paths = [path for root in spec.submodule_search_locations or [] for path in sorted(Path(root).rglob(name))]
    if not paths:
        raise ModelError(f"{section}.package = {weights.package!r} holds no {name}")
    return paths[0]


def _spec(package: str) -> ModuleSpec | None:
    # Of a name with a dot `find_spec` would import the beginning.
    return find_spec(package) if package.isidentifier() else None


def check_pin(weights: Weights, files: Sequence[Path], section: str) -> None:
    """Compare the hash of a model's weights with `sha256`, if there is one.

    Raises:
        ModelError: they differ.
    """
    if weights.sha256 is None or weights.sha256 == (actual := weights_hash(files)):
        return
    again = "install it again or, " if weights.source == "package" else ""
    raise ModelError(
        f"{files[0]}: sha256 is {actual}, but {section}.sha256 pins {weights.sha256}: {again}if this is the model that "
        f"is meant, set {section}.sha256 = null, or to its own hash"
    )


def weights_hash(files: Sequence[Path]) -> str:
    """The hash of a model's weights: of one file its own, which others can look up; of shards that of their hashes."""
    hashes = [file_hash(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def package_version(package: str) -> str:
    """The version of an installed package, for signatures."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown version"


def commit(weights: Weights, section: str) -> str:
    """The commit that `hub_id` at `revision` is now; that of the hub's cache where the hub is not reached.

    A revision that is a commit is taken as it is, without asking the hub.

    Raises:
        ModelError: the hub cannot be reached or has no such model or revision, or the cache does not have it.
    """
    hub_id, revision = str(weights.hub_id), str(weights.revision)
    with hub_errors(
        f"{section}.hub_id = {hub_id!r} at revision {revision!r}", ModelError, OWN_LOCAL.get(section, LOCAL)
    ):
        return commit_of(hub_id, revision, "model")


def snapshot(hub_id: str, commit: str) -> Path:
    """The folder of a commit in the hub's cache; a complete one is used without asking the hub, else downloaded.

    Raises:
        ModelError: a file is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: dict[str, Any] = {"revision": commit, "allow_patterns": LAYOUT, "ignore_patterns": DUPLICATES}
    try:
        folder = Path(snapshot_download(hub_id, **asked, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, ModelError):
        with hub_errors(f"{hub_id} at commit {commit}", ModelError, LOCAL):
            folder = Path(snapshot_download(hub_id, **asked))
    return folder
