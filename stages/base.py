"""Stage `base`: the model that everything starts from.

A hub model is recorded, not copied: `models/base/base.json` names the id and the resolved commit, and every later stage
loads that commit. Without `model.hub_id` a tiny one is made: tokenizer, weights, pretraining. With `model.as_decoder`
an encoder becomes a decoder, and is pretrained as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attune.compute.process import set_up_process
from attune.config.params import load
from attune.config.schema import Hardware, Model, Params, Tiny
from attune.corpora.readers import empathetic_dialogues, pretraining
from attune.data.dialogue import Turn
from attune.models.loading import RECORD
from attune.runtime.checkpoints import checkpoints
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import ModelError, reported
from attune.runtime.io import canonicalize_model_files, whole_folder, write_json

RAW = Path("data/raw")
SAMPLE = Path("data/sample/empatheticdialogues")
TARGET = Path("models/base")
CURVES = Path("reports/curves/base")


def resolve(model: Model) -> dict[str, Any]:
    """The record of a hub model: id, revision as asked for, and the commit that it stands for now.

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
    return record_of(model, hub_id=model.hub_id, revision=model.revision, commit=info.sha)


def record_of(model: Model, **source: Any) -> dict[str, Any]:
    """The record of a base model: its name, where it comes from, and in what its weights are held, if not in floats."""
    return {"name": model.name, **source, **({"quantization": model.quantization} if model.quantization else {})}


def pretraining_dialogues(corpus: str) -> Iterator[tuple[Turn, ...]]:
    """What a made model is pretrained on: the train split of the embedded sample, or a folder's `dialogues.jsonl`.

    Raises:
        DataError: as the readers.
    """
    if corpus == "sample":
        dialogues, _ = empathetic_dialogues.read(SAMPLE)
        yield from (d.turns for d in dialogues if d.split == "train")
        return
    yield from (turns for _, turns in pretraining.read(RAW / corpus))


def start(dialogues: list[tuple[Turn, ...]], model: Model, tiny: Tiny, seed: int) -> tuple[Any, Any]:
    """What pretraining begins with: an encoder as a decoder, or random weights.

    Args:
        dialogues: what a tokenizer is made from, where there is no encoder.
        model: which encoder, if any.
        tiny: architecture, where there is none.
        seed: of the weights that are drawn.

    Returns:
        The model and its tokenizer.

    Raises:
        ModelError: the encoder cannot be had, or is none of BERT's architecture.
    """
    from attune.models.bert_decoder import make_decoder, train_wordpiece
    from attune.models.encoder import checked_weights
    from attune.models.tiny import make_model, train_tokenizer

    if model.as_decoder:
        return make_decoder(checked_weights(model).parent, seed)
    texts = (t.text for turns in dialogues for t in turns)
    train = train_wordpiece if tiny.architecture == "bert" else train_tokenizer
    tokenizer = train(texts, tiny.vocab_size, tiny.max_positions)
    return make_model(tokenizer, tiny, seed), tokenizer


def make(
    dialogues: list[tuple[Turn, ...]], model: Model, tiny: Tiny, hardware: Hardware, seed: int, folder: Path
) -> tuple[Any, Any]:
    """Make a model and pretrain all of its weights.

    Args:
        dialogues: what it learns from.
        model: the encoder that it is made of, if any.
        tiny: architecture, where there is none, and pretraining.
        hardware: device and precision.
        seed: of weights and order.
        folder: for checkpoints.

    Returns:
        The model and its tokenizer.

    Raises:
        ModelError: the dialogues do not fill one sequence, a sequence is longer than the model's positions, or the
            encoder cannot be had.
    """
    from transformers import Trainer, TrainingArguments, default_data_collator

    from attune.cpu.optimize import optimize_for_cpu
    from attune.models.loading import compile_layers, require_positions
    from attune.models.tiny import packed_blocks
    from attune.training.common.trainer import run, run_arguments

    set_up_process(hardware)
    made, tokenizer = start(dialogues, model, tiny, seed)
    require_positions(made, "tiny.max_length", tiny.max_length)
    blocks = packed_blocks(tokenizer, dialogues, tiny.max_length)
    if not blocks:
        raise ModelError(
            f"the corpus tiny.corpus = {tiny.corpus!r} is shorter than tiny.max_length = {tiny.max_length}"
        )
    arguments = TrainingArguments(
        num_train_epochs=tiny.epochs,
        learning_rate=tiny.learning_rate,
        per_device_train_batch_size=tiny.batch_size,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        warmup_steps=20,
        **run_arguments(hardware, seed, folder),
    )
    optimize_for_cpu(made, hardware)
    compile_layers(made, hardware)
    run(Trainer(model=made, args=arguments, train_dataset=blocks, data_collator=default_data_collator), CURVES)
    return made, tokenizer


def main(params: Params) -> None:
    """Write `models/base`."""
    from attune.models.encoder import encoder_signature

    if not params.model.is_made:
        CURVES.mkdir(parents=True, exist_ok=True)
        write_json(TARGET / RECORD, resolve(params.model))
        return
    dialogues = list(pretraining_dialogues(params.tiny.corpus))
    settings = (params.model, params.tiny, params.hardware, params.seed)
    with checkpoints("base", params) as folder:
        model, tokenizer = make(dialogues, *settings, folder)
        made_of = encoder_signature(params.model) if params.model.as_decoder else None
        record = record_of(params.model, hub_id=None, revision=None, commit=None, made_of=made_of)
        with whole_folder(TARGET, sum(one.nbytes for one in model.state_dict().values())) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            canonicalize_model_files(partial)
            write_json(partial / RECORD, record)


if __name__ == "__main__":
    with reported():
        stage_arguments(__doc__)
        main(load())
