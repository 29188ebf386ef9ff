"""Stage `sft@<adapter>`: supervised fine-tuning of a LoRA adapter on whole dialogues, loss on assistant tokens (EmPO §3).

    python -m stages.sft sft

writes `models/sft`. `adapters` in the params names the adapters, and the dialogues that each learns from: all, or those
that the corpus rates high or low.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attune.compute.memory import retry_on_oom
from attune.config.params import load, named
from attune.config.schema import Hardware, Lora, Params, Sft
from attune.data.dialogue import Dialogue, read_dialogues
from attune.runtime.checkpoints import checkpoints
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import ModelError, UserError, reported
from attune.runtime.launch import run as in_ranks

BASE = Path("models/base")
TRAIN = Path("data/dialogues/train.parquet")
MODELS = Path("models")
CURVES = Path("reports/curves")


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
        dialogues: to learn from; one without a token to learn is left out.
        sft: hyperparameters.
        lora: rank, scale and dropout of the adapter on all linear layers.
        hardware: device, precision, micro-batch.
        seed: of the adapter's weights, order and dropout.
        folder: for checkpoints.
        curves: folder of the training curves.

    Returns:
        The trained PeftModel.

    Raises:
        ModelError: `sft.max_length` exceeds the model's positions, or no dialogue has a token to learn.
    """
    from functools import partial

    from transformers import TrainingArguments

    from attune.models.loading import add_adapter, require_positions
    from attune.training.common.collate import pad_supervised
    from attune.training.common.trainer import common_arguments, run
    from attune.training.sft.trainer import supervised_trainer

    require_positions(model, "sft.max_length", sft.max_length)
    examples = supervised(tokenizer, dialogues, sft)
    if not examples:
        raise ModelError(
            f"none of {len(dialogues)} dialogues has a token of the {sft.loss_on} within sft.max_length = "
            f"{sft.max_length} tokens: raise it, or change sft.loss_on"
        )
    policy = add_adapter(model, lora, seed)
    trainer = supervised_trainer(
        policy,
        hardware,
        args=TrainingArguments(**common_arguments(sft, hardware, seed, folder)),
        train_dataset=examples,
        data_collator=partial(pad_supervised, pad_id=tokenizer.pad_token_id),
    )
    run(trainer, curves)
    return policy


def supervised(tokenizer: Any, dialogues: Sequence[Dialogue], sft: Sft) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of each dialogue; labels are -100 where a token carries no loss."""
    from tqdm import tqdm

    from attune.models.chat_template import encode_dialogue
    from attune.training.common.collate import IGNORED

    examples = []
    for dialogue in tqdm(dialogues, desc="tokens", unit="dialogue"):
        encoded = encode_dialogue(tokenizer, dialogue.turns, loss_on=sft.loss_on, max_length=sft.max_length)
        labels = [token if learn else IGNORED for token, learn in zip(encoded.ids, encoded.mask, strict=True)]
        if any(encoded.mask[1:]):
            examples.append({"input_ids": encoded.ids, "labels": labels})
    return examples


def of_quality(dialogues: Sequence[Dialogue], quality: str) -> list[Dialogue]:
    """The dialogues of a quality.

    Raises:
        UserError: there is none, or the corpus does not judge its dialogues at all.
    """
    found = [one for one in dialogues if one.quality == quality]
    if not found:
        judged = sorted({one.quality for one in dialogues if one.quality})
        has = f"judges its dialogues {' or '.join(judged)} alone" if judged else "does not judge its dialogues"
        raise UserError(
            f"{TRAIN}: an adapter learns from dialogues of quality {quality}, but the train split {has}: choose another "
            f"corpus, or drop the adapter (-S ~adapters.sft-{quality}) and its variants"
        )
    return found


def main(name: str, params: Params) -> None:
    """Write the adapter `name` to `models/<name>`."""
    from attune.models.loading import load_base, load_tokenizer
    from attune.training.common.resume import last_checkpoint
    from attune.training.common.trainer import keep_adapter

    adapter = named(params.adapters, name, "adapters")
    dialogues = read_dialogues(TRAIN)
    if adapter.quality != "all":
        dialogues = of_quality(dialogues, adapter.quality)
    with checkpoints(f"sft@{name}", params) as folder:
        tokenizer = load_tokenizer(BASE)

        def attempt(hardware: Hardware) -> Any:
            settings = (params.sft, params.lora, hardware, params.seed)
            return fine_tune(load_base(BASE, hardware), tokenizer, dialogues, *settings, folder, CURVES / name)

        retry_on_oom(attempt, params.hardware, params.sft)

        def write() -> None:
            end = last_checkpoint(folder)
            assert end is not None, "the trainer writes a checkpoint at its last step"
            keep_adapter(end, MODELS / name)

        on_main_process(write)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, adapter="a key of adapters")
        params = load()
        in_ranks(lambda: main(arguments.adapter, params), params.hardware)
