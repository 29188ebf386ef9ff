"""Stage `sft`: supervised fine-tuning of a LoRA adapter on whole dialogues, loss on assistant tokens (EmPO §3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.checkpoints import checkpoints
from stages.dialogues import Dialogue, read_dialogues
from stages.errors import reported
from stages.params import Hardware, Lora, Params, Sft, load

BASE = Path("models/base")
TRAIN = Path("data/dialogues/train.parquet")
TARGET = Path("models/sft")
CURVES = Path("reports/curves/sft")


def fine_tune(
    model: Any,
    tokenizer: Any,
    dialogues: Sequence[Dialogue],
    sft: Sft,
    lora: Lora,
    hardware: Hardware,
    seed: int,
    folder: Path,
) -> Any:
    """Train a fresh adapter on `model`.

    Args:
        model: the base model; it gets the adapter.
        tokenizer: its tokenizer.
        dialogues: to learn from; one without a token to learn is left out.
        sft: hyperparameters.
        lora: rank, scale and dropout of the adapter on all linear layers.
        hardware: device, precision, micro-batch.
        seed: of the adapter's weights, order and dropout.
        folder: for checkpoints.

    Returns:
        The trained PeftModel.

    Raises:
        ModelError: `sft.max_length` exceeds the model's positions.
    """
    from functools import partial

    from transformers import TrainingArguments

    from stages.modeling.collate import pad_supervised
    from stages.modeling.loading import add_adapter, require_positions
    from stages.modeling.supervised import supervised_trainer
    from stages.modeling.training import common_arguments, run

    require_positions(model, "sft.max_length", sft.max_length)
    policy = add_adapter(model, lora, seed)
    trainer = supervised_trainer(
        policy,
        hardware,
        args=TrainingArguments(**common_arguments(sft, hardware, seed, folder)),
        train_dataset=supervised(tokenizer, dialogues, sft),
        data_collator=partial(pad_supervised, pad_id=tokenizer.pad_token_id),
    )
    run(trainer, CURVES)
    return policy


def supervised(tokenizer: Any, dialogues: Sequence[Dialogue], sft: Sft) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of each dialogue; labels are -100 where a token carries no loss."""
    from tqdm import tqdm

    from stages.modeling.chat import encode_dialogue
    from stages.modeling.collate import IGNORED

    examples = []
    for dialogue in tqdm(dialogues, desc="tokens", unit="dialogue"):
        encoded = encode_dialogue(tokenizer, dialogue.turns, loss_on=sft.loss_on, max_length=sft.max_length)
        labels = [token if learn else IGNORED for token, learn in zip(encoded.ids, encoded.mask, strict=True)]
        if any(encoded.mask[1:]):
            examples.append({"input_ids": encoded.ids, "labels": labels})
    return examples


def main(params: Params) -> None:
    """Write the adapter to `models/sft`."""
    from stages.modeling.loading import load_base, load_tokenizer
    from stages.modeling.training import save_adapter

    settings = (params.sft, params.lora, params.hardware, params.seed)
    with checkpoints("sft", settings, [Path("stages"), BASE, TRAIN]) as folder:
        model, tokenizer = load_base(BASE, params.hardware), load_tokenizer(BASE)
        save_adapter(fine_tune(model, tokenizer, read_dialogues(TRAIN), *settings, folder), TARGET)


if __name__ == "__main__":
    with reported():
        main(load())
