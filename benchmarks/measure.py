"""What every benchmark shares: data, models by size, alternating rounds, the result, the peaks of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from attune.config.schema import Tiny
from attune.corpora.readers import empathetic_dialogues
from attune.data.dialogue import Dialogue
from attune.models.tiny import make_model, train_tokenizer
from attune.runtime.io import write_json
from attune.runtime.machine import machine

RESULTS = Path("benchmarks/results")
# Real corpora, laid out as <corpus>/<file>, as for the tests.
CORPORA = Path(os.environ.get("CORPORA_DIR") or "../shared/data")
SAMPLE = Path("data/sample/empatheticdialogues")
ROUNDS = 3
# Llama architectures by their parameters with a vocabulary of 8,192, whose embedding is shared with the head.
SIZES = {
    "5M": {"hidden_size": 256, "intermediate_size": 704, "layers": 4, "heads": 4},
    "15M": {"hidden_size": 384, "intermediate_size": 1024, "layers": 7, "heads": 6},
    "30M": {"hidden_size": 512, "intermediate_size": 1408, "layers": 8, "heads": 8},
}
HEADLINE = "15M"


def dialogues() -> tuple[list[Dialogue], str]:
    """EmpatheticDialogues of `CORPORA` where it is there, else the embedded sample; and which it is."""
    real = CORPORA / "empatheticdialogues"
    folder, name = (real, "EmpatheticDialogues") if real.is_dir() else (SAMPLE, "embedded sample")
    return empathetic_dialogues.read(folder)[0], name


def tokenizer_of(found: Sequence[Dialogue], tiny: Tiny) -> Any:
    """The tiny tokenizer, trained on the train split."""
    texts = (turn.text for one in found if one.split == "train" for turn in one.turns)
    return train_tokenizer(texts, tiny.vocab_size, tiny.max_positions)


def model_of(size: str, tokenizer: Any, tiny: Tiny, seed: int) -> Any:
    """A random Llama model: a key of `SIZES`, everything else as `tiny`."""
    return make_model(tokenizer, replace(tiny, **SIZES[size]), seed)


def parameters(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def timed(trainer: Any) -> Callable[[], float]:
    """A function that trains and returns the seconds from the first micro-batch to the last optimizer step.

    What a trainer sets up before is left out: a round here is short, and a run's set-up is not.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    clock = Clock()
    trainer.add_callback(clock)

    def train() -> float:
        trainer.train()
        return clock.seconds

    return train


def turns(*sides: Callable[[], float], rounds: int = ROUNDS) -> list[tuple[float, ...]]:
    """What every side returns, its own seconds, in each of `rounds` rounds after one round that does not count."""
    return [tuple(side() for side in sides) for _ in range(rounds + 1)][1:]


def alternate(*sides: Callable[[], object], rounds: int = ROUNDS) -> list[tuple[float, ...]]:
    """Seconds of every side in each of `rounds` rounds, after one round that does not count."""
    return turns(*(partial(seconds, side) for side in sides), rounds=rounds)


def compared(rounds: Sequence[tuple[float, ...]], amount: int, what: str, side: int = 1) -> dict[str, Any]:
    """The first side against another, round by round.

    Args:
        rounds: of `alternate`.
        amount: how many of `what` either side did in a round.
        what: in the plural, `replies`.
        side: the peer's place in a round.

    Returns:
        `ratio` (median of the rounds), `low` and `high` (the least and the greatest), `unit`, and what either side does
        a second (medians).
    """
    ratios = sorted(one[side] / one[0] for one in rounds)
    return {
        "ratio": round(median(ratios), 2),
        "low": round(ratios[0], 2),
        "high": round(ratios[-1], 2),
        "unit": f"{what}/s over {what}/s",
        "ours_per_second": round(amount / median(one[0] for one in rounds), 2),
        "peer_per_second": round(amount / median(one[side] for one in rounds), 2),
    }


def matmul_rate(dtype: str, size: int = 2048, repeats: int = 10) -> float:
    """FLOP/s of a product of two square matrices: what the machine reaches where nothing else is in the way.

    Args:
        dtype: `bf16` or `fp32`.
        size: rows and columns.
        repeats: how many products; the fastest counts.
    """
    import torch

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    one, other = torch.randn(2, size, size).to(kind)
    return 2 * size**3 / min(seconds(lambda: one @ other) for _ in range(repeats))


def peak_memory(module: str, *arguments: str) -> int:
    """Peak resident memory in MiB of `python -m module arguments`, run to its end in a process of its own.

    Imports, model and data are part of it. The process calls `print_peak` at its end.

    Raises:
        CalledProcessError: the process failed; what it wrote to stderr has been seen.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def print_peak() -> None:
    """Print `peak` on a line of its own."""
    print(peak())


def peak() -> int:
    """The most MiB that this process has held."""
    # Not ru_maxrss, in which Linux leaves what the process that started this one held.
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kib = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(kib) // 1024


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write `benchmarks/results/<name>.json` with the machine beside the figures, and say the headline."""
    write_json(RESULTS / f"{name}.json", {**result, "machine": machine()})
    print(f"{result['ratio']} ({result['low']} to {result['high']}) times {result['peer']}", file=sys.stderr)
