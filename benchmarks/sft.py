"""Dialogues a second of stage `sft`'s trainer against TRL's SFTTrainer and against a plain loop.

    python -m benchmarks.sft                             # the headline, about 21 minutes on two cores
    python -m benchmarks.sft batch-1 batch-4 batch-16    # about 4, 5 and 7 minutes
    python -m benchmarks.sft all                         # about 45 minutes

The headline is SmolLM2-135M-Instruct with the adapter of `recipe=empo model=smollm2` on EmpatheticDialogues (below
CORPORA_DIR, else of the embedded sample), loss on what the assistant says, an optimizer step of 64 dialogues a round,
EmPO's batch. The other cases have other steps, or random weights of another size.

`trl_defaults` is SFTTrainer as its defaults have it on a CPU: bf16 autocast, activations computed again in the backward
pass (gradient checkpointing); `trl` keeps them, as ours and the plain loop do. All sides have the same model, adapter,
tokens, order, micro-batch, precision, clipping and optimizer. The clock runs from the first micro-batch to the
optimizer's last step: data are tokenised and trainers set up before. Every round has dialogues of its own.

The peaks of memory are those of processes that train on a micro-batch of the longest dialogues.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from attune.compute.process import autocast
from attune.data.keyed import random_subset
from attune.training.common.collate import IGNORED, pad_supervised
from attune.training.common.trainer import common_arguments
from attune.training.sft.fine_tune import supervised_examples
from attune.training.sft.trainer import supervised_trainer
from benchmarks import measure

# Dialogues to choose from.
DIALOGUES = 288
DEFAULTS, ALL = ("trl_defaults",), ("trl_defaults", "trl", "plain")
Example = dict[str, list[int]]


@dataclass(frozen=True)
class Case:
    """`dialogues` dialogues a round, `batch` of them a step."""

    dialogues: int = 64
    batch: int = 64
    peers: tuple[str, ...] = DEFAULTS
    model: str = measure.SMOLLM2

    @property
    def sides(self) -> tuple[str, ...]:
        return ("ours", *self.peers)

    def tiny(self) -> Case:
        return replace(self, model="tiny", dialogues=2, batch=min(self.batch, 2))


CASES = {
    "headline": Case(peers=ALL),
    "batch-1": Case(16, 1),
    "batch-4": Case(32, 4),
    "batch-16": Case(48, 16),
    "size-30M": Case(model="30M"),
    "size-360M": Case(16, 16, model="360M"),
}


class Sides:
    """Each side makes a function that trains on the examples of a round and returns its seconds."""

    def __init__(self, setting: measure.Setting, case: Case) -> None:
        self.setting, self.model = setting, case.model
        self.hardware, self.pad_id = setting.params.hardware, setting.tokenizer.pad_token_id
        self.micro = min(case.batch, self.hardware.micro_batch_size)
        self.batch, self.section = case.batch, replace(setting.params.sft, batch_size=case.batch, epochs=1)

    def policy(self) -> Any:
        return self.setting.policy(self.model)

    def arguments(self) -> dict[str, Any]:
        folder, hardware = Path(tempfile.mkdtemp()), replace(self.hardware, micro_batch_size=self.micro)
        common = common_arguments(self.section, hardware, self.setting.params.seed, folder)
        return {**common, "save_strategy": "no", "disable_tqdm": True}

    def ours(self, examples: Sequence[Example]) -> Callable[[], float]:
        from transformers import TrainingArguments

        collator = partial(pad_supervised, pad_id=self.pad_id)
        arguments = TrainingArguments(**self.arguments())
        return measure.timed(
            supervised_trainer(
                self.policy(), self.hardware, args=arguments, train_dataset=examples, data_collator=collator
            )
        )

    def trl(self, examples: Sequence[Example], **changes: Any) -> Callable[[], float]:
        from datasets import Dataset
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        del (arguments := self.arguments())["remove_unused_columns"]
        config = SFTConfig(**arguments | changes, max_length=self.section.max_length)
        rows = Dataset.from_list(list(examples))
        return measure.timed(
            SFTTrainer(model=self.policy(), args=config, train_dataset=rows, processing_class=self.setting.tokenizer)
        )

    def trl_defaults(self, examples: Sequence[Example]) -> Callable[[], float]:
        return self.trl(examples, activation_checkpointing=True)

    def plain(self, examples: Sequence[Example]) -> Callable[[], float]:
        """Micro-batches as drawn, padded; the loss of transformers, which projects every position."""
        import torch

        policy = self.policy().train()
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.section.learning_rate, weight_decay=0.0, fused=True)

        def step(some: Sequence[Example]) -> None:
            items = torch.tensor(sum(label != IGNORED for one in some for label in one["labels"][1:]))
            for start in range(0, len(some), self.micro):
                batch = pad_supervised(some[start : start + self.micro], self.pad_id)
                with autocast(self.hardware):
                    loss = policy(**batch, num_items_in_batch=items, use_cache=False).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        def steps() -> None:
            for start in range(0, len(examples), self.batch):
                step(examples[start : start + self.batch])

        return lambda: measure.seconds(steps)


def examples_of(setting: measure.Setting) -> tuple[list[Example], str]:
    """Random dialogues of the train split, in which the assistant speaks, as tokens; and where they are from."""
    params, (found, source) = setting.params, measure.dialogues()
    train = random_subset([one for one in found if one.split == "train"], DIALOGUES, params.seed)
    return supervised_examples(setting.tokenizer, train, params.sft), source


def tokens_of(example: Example) -> int:
    return len(example["input_ids"])


def measured(setting: measure.Setting, case: Case) -> dict[str, Any]:
    """The figures of a case."""
    sides, (examples, source) = Sides(setting, case), examples_of(setting)
    # A whole round warms up, since its FLOPs are counted: a single micro-batch has more padding than a step by length.
    parts = measure.in_rounds(examples, case.dialogues, case.dialogues)
    makers = {name: getattr(sides, name) for name in case.sides}
    found = measure.compare(makers, parts, "dialogues", tokens_of, setting.params.hardware.precision)
    return {**found, "model": case.model, "batch": case.batch, "data": source}


def alone(setting: measure.Setting, case: Case, side: str) -> None:
    """Train on a micro-batch of the longest dialogues."""
    sides, (examples, _) = Sides(setting, case), examples_of(setting)
    getattr(sides, side)(sorted(examples, key=tokens_of, reverse=True)[: setting.params.training.micro_batch_size])()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    measure.run("sft", __doc__, CASES, measured, alone, argv)


if __name__ == "__main__":
    main()
