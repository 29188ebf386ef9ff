"""Pairs a second of DPO, from token ids to the last optimizer step, against TRL's DPOTrainer.

    python -m benchmarks.dpo                     # the headline, about 15 minutes on two cores
    python -m benchmarks.dpo batch-1 batch-4     # about 6 and 9 minutes; any other case 3 to 12
    python -m benchmarks.dpo all                 # about an hour and a half

The headline is SmolLM2-135M-Instruct with the adapter of `recipe=empo model=smollm2` on EmPO's pairs of
EmpatheticDialogues (below CORPORA_DIR, else of the embedded sample): three epochs, each with a rejected reply of its
own behind the same context and chosen reply, 16 pairs a step. `batch-1`, `batch-4` and `batch-64` are the same with
other steps. The other cases are cost curves, 8 pairs a step: random weights of other sizes and of a smaller vocabulary,
generated contexts of other lengths, and other ranks.

All sides have the same model, adapter, pairs, order, batch, optimizer, precision and process. TRL runs as its users run
it here: autocast as ours, with its `ref` adapter live in every step, or with `precompute_ref_log_probs`. Our time
includes the reference's log-probabilities of every reply, TRL's its own precomputation; what a trainer sets up before
is left out on all sides. All sides run with the allocator settings of `set_up_process`. No two rounds share a context.
The peaks of memory are those of processes that train on the longest pairs; `sft` is stage `sft`'s trainer on their
contexts with the chosen replies.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from attune.data.examples import examples
from attune.data.keyed import random_subset
from attune.labels.opposites import read_opposites
from attune.pairs.opposite_emotion import build_pairs, group_by_label
from attune.training.common.collate import IGNORED, pad_supervised
from attune.training.common.trainer import common_arguments
from attune.training.dpo.encoding import encode_pair
from benchmarks import measure

EPOCHS, CONTEXTS = 3, 96
# Pairs of the round that warms up: of three contexts, and more than a micro-batch.
WARM = 9
# Tokens of a generated reply, and the room of a pair with a generated context.
REPLY, ROOM = 20, 1024
LIVE, BOTH = ("live",), ("live", "precomputed")
Pair = dict[str, list[int]]


@dataclass(frozen=True)
class Case:
    """`pairs` pairs a round, `batch` of them a step; `context` tokens of generated contexts, None for real pairs."""

    pairs: int = 24
    batch: int = 8
    peers: tuple[str, ...] = LIVE
    model: str = measure.SMOLLM2
    context: int | None = None
    rank: int | None = None
    sft: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        return ("ours", *self.peers, *(("sft",) if self.sft else ()))

    def tiny(self) -> Case:
        return replace(self, model="tiny", pairs=3, batch=min(self.batch, 2), context=self.context and 16)


CASES = {
    "headline": Case(48, 16, BOTH, sft=True),
    "batch-1": Case(12, 1, BOTH),
    "batch-4": Case(24, 4, BOTH),
    "batch-64": Case(64, 64),
    "size-30M": Case(48, model="30M"),
    "size-360M": Case(9, model="360M"),
    "vocabulary-8192": Case(24, model="135M, vocabulary 8,192", context=64),
    "context-64": Case(24, context=64),
    "context-256": Case(12, context=256),
    "context-512": Case(9, context=512),
    "rank-64": Case(24, rank=64),
    "rank-256": Case(24, rank=256),
}


class Sides:
    """Each side makes a function that trains on the pairs of a round and returns its seconds."""

    def __init__(self, setting: measure.Setting, case: Case) -> None:
        params = setting.params
        self.setting, self.case, self.tokenizer = setting, case, setting.tokenizer
        self.max_length = ROOM if case.context else params.dpo.max_length
        self.dpo = replace(params.dpo, batch_size=case.batch, max_length=self.max_length, epochs=1)
        self.hardware = params.hardware

    def policy(self) -> Any:
        return self.setting.policy(self.case.model, self.case.rank)

    def arguments(self, section: Any, folder: str) -> dict[str, Any]:
        micro = replace(self.hardware, micro_batch_size=min(self.hardware.micro_batch_size, self.case.batch))
        common = common_arguments(section, micro, self.setting.params.seed, Path(folder))
        return {**common, "save_strategy": "no", "disable_tqdm": True}

    def trainer(self, kind: Any, policy: Any, rows: Sequence[Any], folder: str, **changes: Any) -> Any:
        from datasets import Dataset
        from trl.trainer.dpo_config import DPOConfig

        from attune.training.dpo.trl_losses import config_arguments

        config = DPOConfig(
            max_length=self.max_length, **config_arguments(self.dpo), **changes, **self.arguments(self.dpo, folder)
        )
        rows = Dataset.from_list(list(rows))
        return kind(model=policy, args=config, train_dataset=rows, processing_class=self.tokenizer)

    def ours(self, pairs: Sequence[Pair], asked: Sequence[Pair] = ()) -> Callable[[], float]:
        """Stage `dpo`'s trainer; the reference is computed for the pairs `asked` as well."""
        from attune.training.common.packed_forward import prepare
        from attune.training.dpo.packed_trainer import packed_trainer
        from attune.training.dpo.reference_logps import complete, with_reference

        policy = self.policy()

        def train() -> float:
            with tempfile.TemporaryDirectory() as folder:
                prepare(policy, self.hardware, self.max_length)
                reference, rows = 0.0, list(pairs)
                if self.dpo.has_reference:
                    file, pad_id = Path(folder) / "logps.parquet", self.tokenizer.pad_token_id
                    started = time.perf_counter()
                    known = complete(policy, [*pairs, *asked], file, None, "benchmark", self.hardware, pad_id)
                    reference, rows = time.perf_counter() - started, with_reference(rows, known)
                return reference + measure.timed(self.trainer(packed_trainer(self.dpo), policy, rows, folder))()

        return train

    def live(self, pairs: Sequence[Pair]) -> Callable[[], float]:
        from attune.training.dpo.packed_trainer import encoded_pairs_trainer

        policy = self.policy()

        def train() -> float:
            with tempfile.TemporaryDirectory() as folder:
                return measure.timed(self.trainer(encoded_pairs_trainer(), policy, pairs, folder))()

        return train

    def precomputed(self, pairs: Sequence[Pair]) -> Callable[[], float]:
        from attune.training.dpo.packed_trainer import encoded_pairs_trainer

        class Precomputing(encoded_pairs_trainer()):
            def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
                started = time.perf_counter()
                rows = super()._precompute_ref_logps(*args, **kwargs)
                self.reference = time.perf_counter() - started
                return rows

        policy = self.policy()

        def train() -> float:
            with tempfile.TemporaryDirectory() as folder:
                trainer = self.trainer(Precomputing, policy, pairs, folder, precompute_ref_log_probs=True)
                return float(trainer.reference + measure.timed(trainer)())

        return train

    def sft(self, pairs: Sequence[Pair]) -> Callable[[], float]:
        """Stage `sft`'s trainer on the contexts with the chosen replies."""
        from transformers import TrainingArguments

        from attune.training.sft.trainer import supervised_trainer

        rows = [
            {"input_ids": p["prompt_ids"] + p["chosen_ids"],
             "labels": [IGNORED] * len(p["prompt_ids"]) + p["chosen_ids"]} for p in pairs
        ]  # fmt: skip
        section = replace(self.setting.params.sft, batch_size=self.case.batch, epochs=1)
        return measure.timed(
            supervised_trainer(
                self.policy(),
                self.hardware,
                args=TrainingArguments(**self.arguments(section, tempfile.mkdtemp())),
                train_dataset=rows,
                data_collator=partial(pad_supervised, pad_id=self.tokenizer.pad_token_id),
            )
        )


def pairs_of(setting: measure.Setting, case: Case) -> tuple[list[Pair], str]:
    """Pairs as token ids, those of a context behind each other, one for each epoch; and where they are from."""
    params, tokenizer = setting.params, setting.tokenizer
    if case.context:
        vocabulary = measure.SHAPES.get(case.model, {}).get("vocab_size", len(tokenizer))
        return generated(case.context, vocabulary), "generated pairs"
    found, source = measure.dialogues()
    train = examples([dialogue for dialogue in found if dialogue.split == "train"], "last", None)
    opposites, part = read_opposites(Path(params.pairs.table)), random_subset(train, CONTEXTS, params.seed)
    groups = group_by_label(train)
    epochs = (build_pairs(part, groups, opposites, seed=params.seed, epoch=epoch) for epoch in range(1, EPOCHS + 1))
    pairs = [pair for context in zip(*epochs, strict=True) for pair in context]
    cut = params.dpo.max_length
    return [encode_pair(tokenizer, pair.prompt, pair.chosen, pair.rejected, cut) for pair in pairs], source


def generated(context: int, vocabulary: int) -> list[Pair]:
    """Random tokens, for lengths that the corpus does not have."""
    draw = random.Random(1)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(5, vocabulary) for _ in range(length)]

    asked = ({"prompt_ids": tokens(context), "chosen_ids": tokens(REPLY)} for _ in range(CONTEXTS))
    return [{**one, "rejected_ids": tokens(REPLY)} for one in asked for _ in range(EPOCHS)]


def tokens_of(pair: Pair) -> int:
    """Of both sequences of a pair."""
    return 2 * len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


def measured(setting: measure.Setting, case: Case) -> dict[str, Any]:
    """The figures of a case."""
    sides, (pairs, source) = Sides(setting, case), pairs_of(setting, case)
    makers = {name: getattr(sides, name) for name in ("ours", *case.peers)}
    parts = measure.in_rounds(pairs, WARM, case.pairs)
    found = measure.compare(makers, parts, "pairs", tokens_of, setting.params.hardware.precision)
    rank = case.rank or setting.params.lora.r
    return {**found, "model": case.model, "batch": case.batch, "rank": rank, "data": source}


def alone(setting: measure.Setting, case: Case, side: str) -> None:
    """Train on a micro-batch of the longest pairs; ours with the reference of enough pairs for a whole pass."""
    sides, (pairs, _) = Sides(setting, case), pairs_of(setting, case)
    longest = sorted(pairs, key=tokens_of, reverse=True)[:64]
    some = longest[: setting.params.training.micro_batch_size]
    (sides.ours(some, longest) if side == "ours" else getattr(sides, side)(some))()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    measure.run("dpo", __doc__, CASES, measured, alone, argv)


if __name__ == "__main__":
    main()
