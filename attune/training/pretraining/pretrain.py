"""Make a base model and pretrain all of its weights: from random weights, or from a BERT encoder run as a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.compute.process import set_up_process
from attune.data.dialogue import Turn
from attune.models.chat_template import render
from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from attune.config.schema import Hardware, Model, Tiny

Conversations = Sequence[Sequence[Turn]]


def pretrain(
    dialogues: Conversations, model: Model, tiny: Tiny, hardware: Hardware, seed: int, folder: Path, curves: Path
) -> tuple[Any, Any]:
    """Make a model and pretrain it on packed dialogues with AdamW and cosine decay.

    Args:
        dialogues: the training text.
        model: names the encoder, with `model.as_decoder`.
        tiny: architecture (without an encoder) and hyperparameters.
        hardware: device and precision.
        seed: seeds initial weights and the order of the sequences.
        folder: for checkpoints.
        curves: for the training curves.

    Returns:
        The model and its tokenizer.

    Raises:
        ModelError: the dialogues do not fill one sequence, a sequence is longer than the model's positions, or the
            encoder is not available.
    """
    set_up_process(hardware)
    from transformers import Trainer, TrainingArguments, default_data_collator

    from attune.cpu.optimize import optimize_for_cpu
    from attune.models.loading import compile_layers, require_positions
    from attune.training.common.trainer import run, run_arguments

    network, tokenizer = initial_model(dialogues, model, tiny, seed)
    require_positions(network, "tiny.max_length", tiny.max_length)
    sequences = packed_sequences(tokenizer, dialogues, tiny.max_length)
    if not sequences:
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
    optimize_for_cpu(network, hardware)
    compile_layers(network, hardware)
    run(Trainer(model=network, args=arguments, train_dataset=sequences, data_collator=default_data_collator), curves)
    return network, tokenizer


def initial_model(dialogues: Conversations, model: Model, tiny: Tiny, seed: int) -> tuple[Any, Any]:
    """The model before pretraining, and its tokenizer.

    Args:
        dialogues: the text that a tokenizer is trained on; not used with an encoder, which has its own.
        model: names the encoder, with `model.as_decoder`.
        tiny: architecture, without an encoder.
        seed: seeds the weights that are drawn.

    Raises:
        ModelError: the encoder is not available, or its architecture is not BERT.
    """
    from attune.models.bert_decoder import make_decoder, train_wordpiece
    from attune.models.tiny import make_model, train_tokenizer
    from attune.models.weights import layout

    if model.as_decoder:
        return make_decoder(layout(model, "model"), seed)
    texts = (t.text for turns in dialogues for t in turns)
    train = train_wordpiece if tiny.architecture == "bert" else train_tokenizer
    tokenizer = train(texts, tiny.vocab_size, tiny.max_positions)
    return make_model(tokenizer, tiny, seed), tokenizer


def packed_sequences(
    tokenizer: PreTrainedTokenizerFast, dialogues: Conversations, length: int
) -> list[dict[str, list[int]]]:
    """Concatenate all rendered dialogues and cut them into sequences of `length` tokens; the remainder is dropped.

    Attention is not masked between the dialogues of a sequence, as is usual in pretraining.

    Returns:
        `input_ids` and `labels` of each sequence, which are equal: every token carries the loss.
    """
    texts = [render(tokenizer, turns) for turns in dialogues]
    ids = [token for tokens in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in tokens]
    starts = range(0, len(ids) - length + 1, length)
    return [{"input_ids": ids[i : i + length], "labels": ids[i : i + length]} for i in starts]
