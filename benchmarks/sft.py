"""Tokens a second of stage `sft`'s trainer against TRL's SFTTrainer and against a plain loop.

    python -m benchmarks.sft

One optimizer step a round on 64 dialogues of EmpatheticDialogues (EmPO's batch; the embedded sample where CORPORA_DIR
has none), loss on what the assistant says. All sides have the same random Llama model, LoRA, dialogues, micro-batch,
precision, dropout, clipping and optimizer, and none recomputes activations; `trl_defaults` is SFTTrainer with TRL's own
default, which does. The clock runs from the first micro-batch to the optimizer's step: data are tokenised and trainers
set up before. The sides are warmed up and alternate.

`flops_share` is what the step needs (no padding, head on supervised positions) over the rate of a large product of
matrices in the same run: the same amount of work for every side.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from attune.compute.process import autocast, set_up_process
from attune.config.params import load
from attune.config.schema import Params
from attune.data.dialogue import Dialogue
from attune.models.chat_template import messages
from attune.training.common.collate import IGNORED, pad_supervised
from attune.training.common.trainer import common_arguments
from attune.training.sft.fine_tune import supervised_examples
from attune.training.sft.trainer import supervised_trainer
from benchmarks import measure

BATCH = 64  # EmPO A.1
SIDES = ("ours", "trl", "plain")
MORE = ("trl_defaults", "compiled")  # at the headline's size alone


class Case:
    """A model size with its data; each side makes a function that runs a step and returns its seconds."""

    def __init__(self, size: str, tokenizer: Any, dialogues: list[Dialogue], params: Params) -> None:
        self.size, self.tokenizer, self.dialogues, self.params = size, tokenizer, dialogues, params
        self.examples = supervised_examples(tokenizer, dialogues, params.sft)
        self.folder = Path(tempfile.mkdtemp())

    def lora(self) -> Any:
        from peft import LoraConfig

        lora = self.params.lora
        return LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )

    def model(self) -> Any:
        return measure.model_of(self.size, self.tokenizer, self.params.tiny, self.params.seed)

    def policy(self) -> Any:
        from peft import get_peft_model

        return get_peft_model(self.model(), self.lora())

    def arguments(self) -> dict[str, Any]:
        common = common_arguments(self.params.sft, self.params.hardware, self.params.seed, self.folder)
        return {**common, "num_train_epochs": 1, "save_strategy": "no", "logging_first_step": False}

    def ours(self, **changes: Any) -> Callable[[], float]:
        from transformers import TrainingArguments

        collator = partial(pad_supervised, pad_id=self.tokenizer.pad_token_id)
        arguments = TrainingArguments(**self.arguments())
        hardware = replace(self.params.hardware, **changes)
        return measure.timed(
            supervised_trainer(
                self.policy(), hardware, args=arguments, train_dataset=self.examples, data_collator=collator
            )
        )

    def compiled(self) -> Callable[[], float]:
        return self.ours(compile=True)

    def trl(self, **changes: Any) -> Callable[[], float]:
        from datasets import Dataset
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        rows = Dataset.from_list([{"messages": messages(one.turns)} for one in self.dialogues])
        del (arguments := self.arguments())["remove_unused_columns"]
        config = SFTConfig(**arguments | changes, max_length=self.params.sft.max_length, assistant_only_loss=True)
        return measure.timed(
            SFTTrainer(
                model=self.model(),
                args=config,
                train_dataset=rows,
                processing_class=self.tokenizer,
                peft_config=self.lora(),
            )
        )

    def trl_defaults(self) -> Callable[[], float]:
        return self.trl(activation_checkpointing=True)

    def plain(self) -> Callable[[], float]:
        """Micro-batches as drawn, padded; the loss of transformers, which projects every position."""
        import torch

        policy = self.policy().train()
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.params.sft.learning_rate, weight_decay=0.0, fused=True)
        micro, pad_id = self.params.hardware.micro_batch_size, self.tokenizer.pad_token_id
        items = torch.tensor(self.supervised_tokens())

        def step() -> None:
            for start in range(0, len(self.examples), micro):
                batch = pad_supervised(self.examples[start : start + micro], pad_id)
                with autocast(self.params.hardware):
                    loss = policy(**batch, num_items_in_batch=items, use_cache=False).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return lambda: measure.seconds(step)

    def tokens(self) -> int:
        return sum(len(one["input_ids"]) for one in self.examples)

    def supervised_tokens(self) -> int:
        return sum(label != IGNORED for one in self.examples for label in one["labels"][1:])

    def flops(self) -> float:
        """What a step needs: forward and backward, without gradients of frozen weights, padding and unused logits."""
        policy = self.policy()
        config = policy.config
        adapters = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
        head = config.vocab_size * config.hidden_size
        frozen = measure.parameters(policy) - adapters - head
        # A product and its gradient to the input are 2 FLOP each a weight and token, to the weight as many again.
        linear = self.tokens() * (4 * frozen + 6 * adapters) + self.supervised_tokens() * 4 * head
        squares = sum(len(one["input_ids"]) ** 2 for one in self.examples)
        return linear + 6 * squares * config.hidden_size * config.num_hidden_layers


def compare(case: Case, sides: tuple[str, ...]) -> dict[str, Any]:
    """All sides on one model, against the second."""
    steps = [getattr(case, side)() for side in sides]
    rounds = measure.turns(*steps)
    rate, needed = measure.matmul_rate(case.params.hardware.dtype), case.flops()
    times = {side: median(one[i] for one in rounds) for i, side in enumerate(sides)}
    return {
        **measure.compared(rounds, case.tokens(), "tokens"),
        "over": {side: measure.compared(rounds, case.tokens(), "tokens", i) for i, side in enumerate(sides) if i > 0},
        "dialogues_per_second": {side: round(len(case.examples) / time, 2) for side, time in times.items()},
        "flops_share": {side: round(needed / time / rate, 3) for side, time in times.items()},
        "matmul_gflops": round(rate / 1e9),
        "parameters": measure.parameters(case.model()),
    }


def main(memory: str | None) -> None:
    """Measure, print and write the result; or run a step of one side, for its peak of memory."""
    params = load()
    params = replace(params, sft=replace(params.sft, batch_size=BATCH))
    set_up_process(params.hardware)
    found, data = measure.dialogues()
    tokenizer = measure.tokenizer_of(found, params.tiny)
    spoken = [one for one in found if one.split == "train" and any(turn.role == "assistant" for turn in one.turns)]
    chosen = spoken[:: max(1, len(spoken) // BATCH)][:BATCH]
    headline = Case(measure.HEADLINE, tokenizer, chosen, params)
    if memory:
        getattr(headline, memory)()()
        measure.print_peak()
        return
    cases = {
        size: compare(Case(size, tokenizer, chosen, params), (*SIDES, *(MORE if size == measure.HEADLINE else ())))
        for size in measure.SIZES
    }
    result = {
        **{key: value for key, value in cases[measure.HEADLINE].items() if key != "over"},
        "peer": "TRL SFTTrainer",
        "peak_memory_mib": {side: measure.peak_memory("benchmarks.sft", "--memory", side) for side in SIDES},
        "cases": cases,
        "data": data,
        "dialogues": len(chosen),
        "tokens": headline.tokens(),
        "supervised_tokens": headline.supervised_tokens(),
        "batch_size": BATCH,
        "micro_batch_size": params.hardware.micro_batch_size,
        "dtype": params.hardware.dtype,
    }
    measure.write_result("sft", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=SIDES, help="run one step of one side and nothing else")
    main(parser.parse_args().memory)
