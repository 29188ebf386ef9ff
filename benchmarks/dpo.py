"""Pairs a second of DPO, from token ids to a trained adapter, against TRL's DPOTrainer.

    python -m benchmarks.dpo          # 15 M parameters, EmpatheticDialogues' pairs
    python -m benchmarks.dpo --all    # and other sizes, lengths of context and batch sizes

Same random model, adapter, pairs, order, batch, optimizer, precision and process; the pairs are those of EmPO's first
round (of EmpatheticDialogues below CORPORA_DIR, else of the embedded sample). TRL runs as its users run it here: bf16
autocast on the CPU, with its `ref` adapter live in every step, or with `precompute_ref_log_probs`. Our time includes
the reference's log-probabilities of both replies, TRL's its own precomputation. The allocator's setting of
`set_up_process` serves both. Every round has its own pairs, every side is warmed up, the sides alternate, and the ratio
is taken round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from stages.corpora import empathetic_dialogues
from stages.dialogues import Dialogue, example
from stages.files import write_json
from stages.machine import machine
from stages.modeling.dpo import encode_pair
from stages.modeling.loading import set_up_process
from stages.modeling.tiny import make_model, train_tokenizer
from stages.pairs import epoch_pairs
from stages.params import load
from stages.preferences.opposite_emotion import read_opposites

RESULTS = {"live": Path("benchmarks/results/dpo.json"), "precomputed": Path("benchmarks/results/dpo-precomputed.json")}
PEERS = {
    "live": "TRL DPOTrainer, reference adapter live in every step",
    "precomputed": "TRL DPOTrainer with precompute_ref_log_probs, its precomputation included",
}
ROUNDS, STEPS = 3, 6
# Width, feed-forward, layers, heads; with 8,192 tokens.
SIZES = {"5 M": (256, 704, 4, 4), "15 M": (384, 1024, 7, 6), "30 M": (512, 1408, 8, 8)}


def main(every: bool) -> None:
    """Measure, print and write the results."""
    params = load()
    set_up_process(params.hardware)
    tokenizer, real, source = real_pairs(params)
    cases = {"headline": ("15 M", real, 16)}
    if every:
        cases |= {f"size {size}": (size, real, 16) for size in ("5 M", "30 M")}
        cases |= {f"context {n}": ("15 M", made_pairs(n, 20), 16) for n in (64, 256, 512)}
        cases |= {f"batch {n}": ("15 M", real, n) for n in (4, 64)}
    rate = matmul_rate()
    measured = {name: measure(tokenizer, *case, params, rate) for name, case in cases.items()}
    memory = {what: peak_memory(what) for what in ("dpo", "sft", "live")}
    for side, path in RESULTS.items():
        found = {name: one[side] for name, one in measured.items()}
        result = {key: found["headline"][key] for key in ("ratio", "low", "high")}
        result |= {"peer": PEERS[side], "unit": "pairs/s over pairs/s", "pairs": source, "dtype": params.hardware.dtype}
        result |= {"matmul_gflops_per_second": round(rate / 1e9), "peak_memory_mib": memory}
        result |= {"memory_over_sft": round(memory["dpo"] / memory["sft"], 2), "cases": found, "machine": machine()}
        write_json(path, result)
        print(f"{result['ratio']} ({result['low']} to {result['high']}) times {result['peer']}", file=sys.stderr)


def real_pairs(params: Any) -> tuple[Any, list[dict[str, list[int]]], str]:
    """A tokenizer and pairs as token ids, and where they are from."""
    folder = Path(os.environ.get("CORPORA_DIR", "data/sample")) / "empatheticdialogues"
    folder = folder if folder.is_dir() else Path("data/sample/empatheticdialogues")
    dialogues, _ = empathetic_dialogues.read(folder)
    train = [one for one in dialogues if one.split == "train" and has_target(one)]
    tokenizer = train_tokenizer((t.text for d in train for t in d.turns), 8192, 1024)
    _, pairs = epoch_pairs(train, read_opposites(Path(params.pairs.opposites)), 2048, params.seed, 1)
    encoded = [encode_pair(tokenizer, pair.prompt, pair.chosen, pair.rejected, 256) for pair in pairs]
    name = "the embedded sample" if folder.parts[0] == "data" else "EmpatheticDialogues"
    return tokenizer, encoded, name


def has_target(dialogue: Dialogue) -> bool:
    try:
        return bool(example(dialogue).target)
    except ValueError:
        return False


def made_pairs(context: int, reply: int) -> list[dict[str, list[int]]]:
    """Random tokens behind each other, for lengths that the corpus does not have."""
    draw = random.Random(1)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(5, 8192) for _ in range(length)]

    return [
        {"prompt_ids": tokens(context), "chosen_ids": tokens(reply), "rejected_ids": tokens(reply)} for _ in range(512)
    ]


def measure(tokenizer: Any, size: str, pairs: list[Any], batch: int, params: Any, rate: float) -> dict[str, Any]:
    """Ratio, pairs and tokens a second and share of the matrix product's rate of one case, against each peer."""
    from torch.utils.flop_counter import FlopCounterMode

    share = batch * min(STEPS, max(2, 96 // batch))
    flops, seconds = {}, {}
    for number in range(ROUNDS + 1):
        part = pairs[number * share :][:share]
        for side in ("ours", *PEERS):
            work = one_side(side, tokenizer, size, part, batch, params)
            if number:
                seconds.setdefault(side, []).append(timed(work))
            else:
                with FlopCounterMode(display=False) as counter:
                    work()
                flops[side] = counter.get_total_flops()
    used = pairs[share : (ROUNDS + 1) * share]
    tokens = sum(len(p["prompt_ids"]) * 2 + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in used) / len(used)
    found = {}
    for peer in PEERS:
        ratios = sorted(theirs / ours for ours, theirs in zip(seconds["ours"], seconds[peer], strict=True))
        found[peer] = {"ratio": round(median(ratios), 2), "low": round(ratios[0], 2), "high": round(ratios[-1], 2)}
        for name, side in (("ours", "ours"), ("peer", peer)):
            per_second = share / median(seconds[side])
            found[peer] |= {
                f"{name}_pairs_per_second": round(per_second, 2),
                f"{name}_tokens_per_second": round(per_second * tokens),
                f"{name}_share_of_matmul_rate": round(flops[side] / median(seconds[side]) / rate, 3),
                f"{name}_gflops_a_pair": round(flops[side] / share / 1e9, 3),
            }
        found[peer] |= {"parameters": size, "batch": batch, "pairs_a_round": share}
    return found


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def policy_of(tokenizer: Any, size: str, params: Any) -> Any:
    """A random model with an adapter that is not the identity."""
    import torch
    from peft import LoraConfig, get_peft_model

    hidden, wide, layers, heads = SIZES[size]
    tiny = replace(params.tiny, hidden_size=hidden, intermediate_size=wide, layers=layers, heads=heads,
                   max_positions=1024)  # fmt: skip
    lora = LoraConfig(r=params.lora.r, lora_alpha=params.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(make_model(tokenizer, tiny, params.seed), lora)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return policy


def one_side(side: str, tokenizer: Any, size: str, pairs: list[Any], batch: int, params: Any) -> Callable[[], None]:
    """What a side does with the pairs of a round: from token ids to a trained adapter."""
    from datasets import Dataset, disable_progress_bars
    from trl.trainer.dpo_config import DPOConfig

    from stages.modeling.packed import prepare
    from stages.modeling.packed_dpo import trainer_classes
    from stages.modeling.reference import complete, with_reference
    from stages.modeling.training import common_arguments

    disable_progress_bars()
    policy, folder = policy_of(tokenizer, size, params), tempfile.TemporaryDirectory()
    dpo = replace(params.dpo, batch_size=batch, max_length=768, epochs=1)
    arguments = common_arguments(dpo, replace(params.hardware, micro_batch_size=16), params.seed, Path(folder.name))
    arguments |= {"save_strategy": "no", "disable_tqdm": True}
    config = DPOConfig(beta=dpo.beta, max_length=dpo.max_length, precompute_ref_log_probs=side == "precomputed",
                       **arguments)  # fmt: skip
    stock, packed = trainer_classes()

    def train() -> None:
        rows = pairs
        if side == "ours":
            file = Path(folder.name) / "logps.parquet"
            prepare(policy, params.hardware, dpo.max_length)
            known = complete(policy, pairs, file, None, "benchmark", params.hardware, tokenizer.pad_token_id)
            rows = with_reference(pairs, known)
        kind = packed if side == "ours" else stock
        trainer = kind(model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer.train()

    return train


def matmul_rate() -> float:
    """FLOP a second of a large product in bf16, the best of some."""
    import torch

    one = torch.randn(2048, 2048).bfloat16()
    best = min(timed(lambda: one @ one) for _ in range(8))
    return 2 * 2048**3 / best


def peak_memory(what: str) -> int:
    """MiB that a process of its own held at most while it trained; imports, model and data included."""
    command = [sys.executable, "-m", "benchmarks.dpo", "--memory", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def train_for_memory(what: str) -> None:
    """Train for some steps on the longest of some real pairs, by SFT or by a side of `one_side`, and print the peak."""
    from functools import partial

    from transformers import Trainer, TrainingArguments

    from stages.modeling.collate import IGNORED, pad_supervised
    from stages.modeling.training import common_arguments

    params = load()
    set_up_process(params.hardware)
    tokenizer, pairs, _ = real_pairs(params)
    pairs = sorted(pairs[:512], key=lambda pair: -len(pair["prompt_ids"]))[:64]
    if what != "sft":
        one_side({"dpo": "ours"}.get(what, what), tokenizer, "15 M", pairs, 16, params)()
    else:
        rows = [
            {"input_ids": p["prompt_ids"] + p["chosen_ids"],
             "labels": [IGNORED] * len(p["prompt_ids"]) + p["chosen_ids"]} for p in pairs
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            arguments = common_arguments(replace(params.sft, epochs=1), params.hardware, params.seed, Path(folder))
            arguments |= {"save_strategy": "no", "disable_tqdm": True}
            Trainer(
                model=policy_of(tokenizer, "15 M", params),
                args=TrainingArguments(**arguments),
                train_dataset=rows,
                data_collator=partial(pad_supervised, pad_id=tokenizer.pad_token_id),
            ).train()
    # Not ru_maxrss, in which Linux leaves what the process that started this one held.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak_mib": int(peak.split()[1]) // 1024}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="further sizes, lengths of context and batch sizes")
    parser.add_argument("--memory", choices=["dpo", "sft", "live"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory:
        train_for_memory(chosen.memory)
    else:
        main(chosen.all)
