"""Stage `base`: the base model, which every variant starts from.

A model of the hub or of a folder is recorded, not copied: `models/base/base.json` names it with its commit or hash. A
GGUF file of a package is written here as safetensors, which are the same on every machine. With `model.source = made` a
small model is made and pretrained; with `model.as_decoder` a BERT encoder becomes a decoder and is pretrained as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attune.config.params import load
from attune.config.schema import Model, Params
from attune.corpora.readers import empathetic_dialogues, pretraining
from attune.data.dialogue import Turn
from attune.models.base_record import RECORD, base_record
from attune.runtime.checkpoints import checkpoints
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import ModelError, reported
from attune.runtime.io import canonicalize_model_files, whole_folder, write_json

RAW = Path("data/raw")
SAMPLE = Path("data/sample/empatheticdialogues")
TARGET = Path("models/base")
CURVES = Path("reports/curves/base")


def pretraining_dialogues(corpus: str) -> Iterator[tuple[Turn, ...]]:
    """The pretraining data: the train split of the embedded sample, or the `dialogues.jsonl` of a corpus folder.

    Raises:
        DataError: as the readers.
    """
    if corpus == "sample":
        dialogues, _ = empathetic_dialogues.read(SAMPLE)
        yield from (d.turns for d in dialogues if d.split == "train")
        return
    yield from (turns for _, turns in pretraining.read_turns(RAW / corpus))


def record_pretrained(model: Model) -> None:
    """Write the record of a model of the hub or of a folder.

    Raises:
        ModelError: the model is not there, or cannot be used.
    """
    from attune.models.check import check_model
    from attune.models.weights import check_pin, commit, folder_hash, layout, snapshot, weight_files

    if model.source == "hub":
        resolved = commit(model, "model")
        check_model(folder := snapshot(str(model.hub_id), resolved))
        check_pin(model, weight_files(folder), "model")
        details = {"hub_id": model.hub_id, "revision": model.revision, "commit": resolved}
    else:
        check_model(folder := layout(model, "model"))
        details = {"folder": model.folder, "sha256": folder_hash(folder)}
    write_json(TARGET / RECORD, base_record(model, **details))


def write_from_package(model: Model) -> None:
    """Write the model in an installed package to `models/base`: a GGUF file dequantised, or a copy of its files.

    Raises:
        ModelError: the package or its file is missing, has another hash, or cannot be used.
    """
    from attune.models.check import check_model
    from attune.models.gguf import dequantised
    from attune.models.weights import checked_gguf, copy_layout, file_hash, layout, package_version

    with whole_folder(TARGET) as partial:
        if model.file is None:
            check_model(folder := layout(model, "model"))
            weights = copy_layout(folder, partial)
        else:
            weights = checked_gguf(model)
            save(*dequantised(weights), partial)
            try:
                check_model(partial)
            except ModelError as error:
                # It names the folder, which the user does not know.
                raise type(error)(str(error).replace(str(partial), str(weights))) from None
        release = f"{model.package} {package_version(str(model.package))}"
        write_json(partial / RECORD, base_record(model, package=release, sha256=file_hash(weights)))


def make(params: Params) -> None:
    """Make a model, pretrain it, and write it to `models/base`."""
    from attune.models.encoder import encoder_signature
    from attune.training.pretraining.pretrain import pretrain

    dialogues = list(pretraining_dialogues(params.tiny.corpus))
    settings = (params.model, params.tiny, params.hardware, params.tiny.seed)
    with checkpoints("base", params) as folder:
        model, tokenizer = pretrain(dialogues, *settings, folder, CURVES)
        made_of = {"made_of": encoder_signature(params.model, "model")} if params.model.as_decoder else {}
        with whole_folder(TARGET, sum(weight.nbytes for weight in model.state_dict().values())) as partial:
            save(model, tokenizer, partial)
            write_json(partial / RECORD, base_record(params.model, **made_of))


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer to `folder`, as safetensors."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    canonicalize_model_files(folder)


def main(params: Params) -> None:
    """Write `models/base`."""
    from attune.models.check import check_encoders

    check_encoders(params)
    if params.model.is_made:
        make(params)
        return
    CURVES.mkdir(parents=True, exist_ok=True)
    if params.model.source == "package":
        write_from_package(params.model)
    else:
        record_pretrained(params.model)


if __name__ == "__main__":
    with reported():
        stage_arguments(__doc__)
        main(load())
