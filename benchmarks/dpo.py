"""Pairs a second of DPO, from token ids to the last optimizer step, against TRL's DPOTrainer.

    python -m benchmarks.dpo

The headline is 15 M parameters on EmPO's pairs of EmpatheticDialogues (below CORPORA_DIR, else of the embedded sample):
three epochs, each with a rejected reply of its own behind the same context and chosen reply. Other sizes, one epoch
alone, lengths of context and batch sizes follow. Same random model, adapter, pairs, order, batch, optimizer, precision
and process. TRL runs as its users run it here: bf16 autocast on the CPU, with its `ref` adapter live in every step, or
with `precompute_ref_log_probs`. Our time includes the reference's log-probabilities of every reply, TRL's its own
precomputation; what a trainer sets up before is left out on all sides. The allocator's setting of `set_up_process`
serves both. Every round of the benchmark has its own contexts, every side is warmed up, the sides alternate, and the
ratio is taken round by round.

The peaks of memory are those of processes that train on the longest pairs, and of stage `sft`'s trainer on their
contexts with the chosen replies.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from attune.compute.process import set_up_process
from attune.config.params import load
from attune.config.schema import Params
from attune.data.examples import examples
from attune.data.keyed import random_subset
from attune.labels.opposites import read_opposites
from attune.pairs.opposite_emotion import build_pairs, group_by_label
from attune.training.common.collate import IGNORED, pad_supervised
from attune.training.common.trainer import common_arguments
from attune.training.dpo.encoding import encode_pair
from benchmarks import measure

RESULTS = {"live": "dpo", "precomputed": "dpo-precomputed"}
PEERS = {
    "live": "TRL DPOTrainer, reference adapter live in every step",
    "precomputed": "TRL DPOTrainer with precompute_ref_log_probs, its precomputation included",
}
MEMORY = ("ours", "live", "precomputed", "sft")
STEPS, BATCH, MICRO, EPOCHS = 6, 16, 16, 3
TOKENS_A_ROUND = 10_000
# The model's positions, the room of a pair with a made context, and where real pairs are cut.
POSITIONS, MAX_LENGTH, CUT = 1024, 768, 256
LONGEST = 64
Pairs = list[dict[str, list[int]]]


class Case:
    """A model, pairs and a batch; each side makes a function that trains on some of the pairs."""

    def __init__(self, tokenizer: Any, size: str, pairs: Pairs, batch: int, params: Params) -> None:
        self.tokenizer, self.size, self.pairs, self.params = tokenizer, size, pairs, params
        self.dpo = replace(params.dpo, batch_size=batch, max_length=MAX_LENGTH, epochs=1)
        self.hardware = replace(params.hardware, micro_batch_size=MICRO)
        # Pairs of a round: of long ones fewer, so that no case takes much longer than another. Those of a context stand
        # behind each other, one for each epoch, and a round has all of them.
        tokens = sum(len(ids) for pair in pairs for ids in pair.values()) / len(pairs)
        steps = min(STEPS, round(TOKENS_A_ROUND / tokens / batch))
        self.share = batch * max(EPOCHS, steps - steps % EPOCHS)

    def model(self) -> Any:
        return measure.model_of(self.size, self.tokenizer, self.params.tiny, self.params.seed)

    def policy(self) -> Any:
        """A random model with an adapter that is not the identity."""
        import torch
        from peft import LoraConfig, get_peft_model

        model = self.model()
        r, alpha = self.params.lora.r, self.params.lora.alpha
        policy = get_peft_model(
            model, LoraConfig(r=r, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        return policy

    def arguments(self, section: Any, folder: str) -> dict[str, Any]:
        common = common_arguments(section, self.hardware, self.params.seed, Path(folder))
        return {**common, "save_strategy": "no", "disable_tqdm": True}

    def trainer(self, kind: Any, policy: Any, rows: Pairs, folder: str, **changes: Any) -> Any:
        from datasets import Dataset
        from trl.trainer.dpo_config import DPOConfig

        config = DPOConfig(beta=self.dpo.beta, max_length=MAX_LENGTH, **changes, **self.arguments(self.dpo, folder))
        return kind(model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=self.tokenizer)

    def ours(self, pairs: Pairs) -> Callable[[], float]:
        from attune.training.dpo.packed_forward import prepare
        from attune.training.dpo.packed_trainer import trainer_classes
        from attune.training.dpo.reference_logps import complete, with_reference

        policy = self.policy()

        def train() -> float:
            with tempfile.TemporaryDirectory() as folder:
                prepare(policy, self.hardware, MAX_LENGTH)
                file, pad_id = Path(folder) / "logps.parquet", self.tokenizer.pad_token_id
                started = time.perf_counter()
                known = complete(policy, pairs, file, None, "benchmark", self.hardware, pad_id)
                reference = time.perf_counter() - started
                kind = partial(trainer_classes()[1], self.dpo)
                trainer = self.trainer(kind, policy, with_reference(pairs, known), folder)
                return reference + measure.timed(trainer)()

        return train

    def live(self, pairs: Pairs) -> Callable[[], float]:
        from attune.training.dpo.packed_trainer import trainer_classes

        policy = self.policy()

        def train() -> float:
            with tempfile.TemporaryDirectory() as folder:
                return measure.timed(self.trainer(trainer_classes()[0], policy, pairs, folder))()

        return train

    def precomputed(self, pairs: Pairs) -> Callable[[], float]:
        from attune.training.dpo.packed_trainer import trainer_classes

        class Precomputing(trainer_classes()[0]):
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

    def sft(self, pairs: Pairs) -> Callable[[], object]:
        """Stage `sft`'s trainer on the contexts with the chosen replies."""
        from transformers import TrainingArguments

        from attune.training.sft.trainer import supervised_trainer

        rows = [
            {"input_ids": p["prompt_ids"] + p["chosen_ids"],
             "labels": [IGNORED] * len(p["prompt_ids"]) + p["chosen_ids"]} for p in pairs
        ]  # fmt: skip
        section = replace(self.params.sft, batch_size=self.dpo.batch_size, epochs=1)
        trainer = supervised_trainer(
            self.policy(),
            self.hardware,
            args=TrainingArguments(**self.arguments(section, tempfile.mkdtemp())),
            train_dataset=rows,
            data_collator=partial(pad_supervised, pad_id=self.tokenizer.pad_token_id),
        )
        return trainer.train


class Side:
    """A side with the pairs of every round. The first call, which warms up, counts the FLOP of a round."""

    def __init__(self, case: Case, name: str) -> None:
        parts = [case.pairs[i * case.share :][: case.share] for i in range(measure.ROUNDS + 1)]
        self.works = iter([getattr(case, name)(part) for part in parts])
        self.flops = 0

    def __call__(self) -> float:
        from torch.utils.flop_counter import FlopCounterMode

        work = next(self.works)
        if self.flops:
            return float(work())
        with FlopCounterMode(display=False) as counter:
            spent = work()
        self.flops = counter.get_total_flops()
        return float(spent)


def main() -> None:
    """Measure, print and write the results."""
    params, tokenizer, real, source = set_up()
    cases = {"headline": (measure.HEADLINE, real, BATCH), "one epoch": (measure.HEADLINE, real[::EPOCHS], BATCH)}
    cases |= {f"size {size}": (size, real, BATCH) for size in measure.SIZES if size != measure.HEADLINE}
    cases |= {f"context {n}": (measure.HEADLINE, made_pairs(tokenizer, n, 20), BATCH) for n in (64, 256, 512)}
    cases |= {f"batch {n}": (measure.HEADLINE, real, n) for n in (4, 64)}
    rate = measure.matmul_rate(params.hardware.dtype)
    memory = {what: measure.peak_memory("benchmarks.dpo", "--memory", what) for what in MEMORY}
    common = {
        "data": source,
        "dtype": params.hardware.dtype,
        "matmul_gflops": round(rate / 1e9),
        "peak_memory_mib": memory,
        "memory_over_sft": round(memory["ours"] / memory["sft"], 2),
    }
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    for name, case in cases.items():
        measured[name] = compare(Case(tokenizer, *case, params), rate)
        # After each case, since all of them take half an hour.
        save(measured, common)


def save(measured: dict[str, dict[str, dict[str, Any]]], common: dict[str, Any]) -> None:
    """Write the results of the cases so far, a file a peer."""
    for side, name in RESULTS.items():
        found = {case: one[side] for case, one in measured.items()}
        headline = {key: found["headline"][key] for key in ("ratio", "low", "high", "unit")}
        measure.write_result(name, {**headline, "peer": PEERS[side], **common, "cases": found})


def set_up() -> tuple[Params, Any, Pairs, str]:
    """The params, a tokenizer, pairs as token ids, those of a context behind each other, and where they are from."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    params = load()
    params = replace(params, tiny=replace(params.tiny, max_positions=POSITIONS))
    set_up_process(params.hardware)
    found, source = measure.dialogues()
    tokenizer = measure.tokenizer_of(found, params.tiny)
    train = examples([dialogue for dialogue in found if dialogue.split == "train"], "last", None)
    opposites, part = read_opposites(Path(params.pairs.table)), random_subset(train, 1024, params.seed)
    groups = group_by_label(train)
    epochs = (build_pairs(part, groups, opposites, seed=params.seed, epoch=epoch) for epoch in range(1, EPOCHS + 1))
    pairs = [pair for context in zip(*epochs, strict=True) for pair in context]
    encoded = [encode_pair(tokenizer, pair.prompt, pair.chosen, pair.rejected, CUT) for pair in pairs]
    return params, tokenizer, encoded, source


def made_pairs(tokenizer: Any, context: int, reply: int) -> Pairs:
    """Random tokens behind each other, for lengths that the corpus does not have."""
    draw = random.Random(1)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(5, len(tokenizer)) for _ in range(length)]

    found = []
    for _ in range(256):
        asked = {"prompt_ids": tokens(context), "chosen_ids": tokens(reply)}
        found += [{**asked, "rejected_ids": tokens(reply)} for _ in range(EPOCHS)]
    return found


def compare(case: Case, rate: float) -> dict[str, dict[str, Any]]:
    """Ours against each peer: ratio, pairs and tokens a second, FLOP a pair, share of the matrix product's rate."""
    sides = {name: Side(case, name) for name in ("ours", *PEERS)}
    rounds = measure.turns(*sides.values())
    used = case.pairs[case.share : (measure.ROUNDS + 1) * case.share]
    tokens = sum(len(p["prompt_ids"]) * 2 + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in used) / len(used)
    found: dict[str, dict[str, Any]] = {}
    for place, peer in enumerate(PEERS, 1):
        found[peer] = measure.compared(rounds, case.share, "pairs", place)
        for name, side, i in (("ours", sides["ours"], 0), ("peer", sides[peer], place)):
            seconds = median(one[i] for one in rounds)
            found[peer] |= {
                f"{name}_tokens_per_second": round(case.share / seconds * tokens),
                f"{name}_share_of_matmul_rate": round(side.flops / seconds / rate, 3),
                f"{name}_gflops_a_pair": round(side.flops / case.share / 1e9, 3),
            }
        found[peer] |= {"model": case.size, "batch": case.dpo.batch_size, "pairs_a_round": case.share}
    return found


def train_for_memory(what: str) -> None:
    """Train on the longest of some real pairs and print the peak of memory."""
    params, tokenizer, pairs, _ = set_up()
    longest = sorted(pairs[:512], key=lambda pair: -len(pair["prompt_ids"]))[:LONGEST]
    getattr(Case(tokenizer, measure.HEADLINE, longest, BATCH, params), what)(longest)()
    measure.print_peak()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=MEMORY, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory:
        train_for_memory(chosen.memory)
    else:
        main()
