"""Supervised fine-tuning of a LoRA adapter on whole dialogues, with the loss on one role's tokens (EmPO, section 3).

    L = - sum_t m_t log p(y_t | y_<t) / sum_t m_t

y is a rendered dialogue and m its loss mask: 1 on the tokens of the role `sft.loss_on`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.data.dialogue import Dialogue, add_system
from attune.runtime.errors import ModelError, UserError

if TYPE_CHECKING:
    from attune.config.schema import Hardware, Lora, Sft


def fine_tune(
    model: Any,
    tokenizer: Any,
    dialogues: Sequence[Dialogue],
    sft: Sft,
    lora: Lora,
    hardware: Hardware,
    seed: int,
    folder: Path,
    curves: Path,
) -> Any:
    """Train a fresh adapter on `model`.

    Args:
        model: the base model; it gets the adapter.
        tokenizer: its tokenizer.
        dialogues: the training data; a dialogue without a token in the loss mask is left out.
        sft: hyperparameters.
        lora: rank, alpha and dropout of the adapter on all linear layers.
        hardware: device, precision, micro-batch size.
        seed: seeds the adapter's weights, order and dropout.
        folder: for checkpoints.
        curves: for the training curves.

    Returns:
        The trained PeftModel.

    Raises:
        ModelError: `sft.max_length` exceeds the model's positions, or no dialogue has a token in the loss mask.
    """
    from transformers import TrainingArguments

    from attune.models.loading import add_adapter, require_positions
    from attune.training.common.collate import pad_supervised
    from attune.training.common.trainer import common_arguments, run
    from attune.training.sft.trainer import supervised_trainer

    require_positions(model, "sft.max_length", sft.max_length)
    examples = supervised_examples(tokenizer, dialogues, sft)
    if not examples:
        raise ModelError(
            f"none of {len(dialogues)} dialogues has a token of the {sft.loss_on} within sft.max_length = "
            f"{sft.max_length} tokens: raise it, or change sft.loss_on"
        )
    policy, attention = add_adapter(model, lora, seed), model.config._attn_implementation
    trainer = supervised_trainer(
        policy,
        hardware,
        args=TrainingArguments(**common_arguments(sft, hardware, seed, folder)),
        train_dataset=examples,
        data_collator=partial(pad_supervised, pad_id=tokenizer.pad_token_id),
    )
    run(trainer, curves)
    # That of training may take packed sequences alone.
    model.set_attn_implementation(attention)
    return policy


def supervised_examples(tokenizer: Any, dialogues: Sequence[Dialogue], sft: Sft) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of each sequence of `encode_examples`; a token outside the loss mask has label -100."""
    from tqdm import tqdm

    from attune.models.chat_template import encode_examples
    from attune.training.common.collate import IGNORED

    examples = []
    for dialogue in tqdm(dialogues, desc="tokens", unit="dialogue"):
        for encoded in encode_examples(tokenizer, dialogue.turns, loss_on=sft.loss_on, max_length=sft.max_length):
            labels = [token if learn else IGNORED for token, learn in zip(encoded.ids, encoded.mask, strict=True)]
            # No position predicts the first token, so that its label alone gives no loss.
            if any(encoded.mask[1:]):
                examples.append({"input_ids": encoded.ids, "labels": labels})
    return examples


def instructed(dialogues: list[Dialogue], sft: Sft) -> list[Dialogue]:
    """The dialogues with the instruction of `sft.instruction` as their system turn.

    Raises:
        UserError: the file is missing, not UTF-8 or empty.
    """
    from attune.models.system_prompt import read_instruction

    if not sft.instruction_file:
        return dialogues
    text = read_instruction(sft.instruction_file, "sft")
    return [replace(dialogue, turns=add_system(dialogue.turns, text)) for dialogue in dialogues]


def dialogues_of_quality(dialogues: Sequence[Dialogue], quality: str, path: Path) -> list[Dialogue]:
    """The dialogues whose quality is `quality`.

    Args:
        dialogues: of the train split.
        quality: high or low.
        path: the file that the dialogues were read from, for the error message.

    Raises:
        UserError: there are none, or the corpus has no quality labels.
    """
    selected = [dialogue for dialogue in dialogues if dialogue.quality == quality]
    if not selected:
        labels = sorted({dialogue.quality for dialogue in dialogues if dialogue.quality})
        has = f"has only dialogues of quality {' or '.join(labels)}" if labels else "has no quality labels"
        raise UserError(
            f"{path}: an adapter needs dialogues of quality {quality}, but the train split {has}: choose another "
            f"corpus, or drop the adapter (-S ~adapters.sft-{quality}) and its variants"
        )
    return selected
