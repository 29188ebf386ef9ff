"""What the benchmarks share: the command line, data, models, alternating rounds, peaks of memory, the results.

A benchmark has cases; the first is its headline. `python -m benchmarks.<name>` measures the headline, with names of
cases those, with `all` every one. Each case is written to `benchmarks/results/<name>.json` as soon as it is measured,
so that a run can be stopped; other cases keep their results.

A case has sides: `ours` and its peers. All sides get the same data in the same process: after a round that does not
count they alternate, and a ratio is taken round by round. Hyperparameters are those of `recipe=empo model=smollm2`,
whatever params.yaml says.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from attune.compute.memory import free_memory
from attune.compute.process import set_up_process
from attune.config.params import compose, load
from attune.config.schema import Params
from attune.corpora.readers import empathetic_dialogues
from attune.data.dialogue import Dialogue
from attune.models.base_record import RECORD, base_record
from attune.models.gguf import dequantised
from attune.models.loading import add_adapter, load_base, load_tokenizer
from attune.models.tiny import from_config
from attune.models.weights import checked_gguf
from attune.runtime.io import whole_folder, write_json
from attune.runtime.machine import machine
from stages.base import save

RESULTS = Path("benchmarks/results")
# SmolLM2 as stage `base` writes it.
CACHE = Path(".cache/benchmarks")
# Real corpora, laid out as <corpus>/<file>, as for the tests.
CORPORA = Path(os.environ.get("CORPORA_DIR") or "../shared/data")
SAMPLE = Path("data/sample/empatheticdialogues")
RECIPE = ["recipe=empo", "model=smollm2"]
ROUNDS = 3
KILLED = "killed"  # in place of a peak
SMOLLM2 = "SmolLM2-135M"
# What a model with random weights has in place of SmolLM2-135M's configuration; heads of 64, one of keys for three.
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
             "num_key_value_heads": 1},
    "30M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 6,
            "num_key_value_heads": 2},
    "135M, vocabulary 8,192": {"vocab_size": 8192},
    # SmolLM2-360M's.
    "360M": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
             "num_key_value_heads": 5},
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """The params, the folder of SmolLM2, and its tokenizer."""

    params: Params
    base: Path
    tokenizer: Any

    def model(self, name: str) -> Any:
        """SmolLM2, or a random Llama model of `SHAPES`."""
        from transformers import AutoConfig, set_seed

        if name == SMOLLM2:
            return load_base(self.base, self.params.hardware)
        set_seed(self.params.seed)
        return from_config(AutoConfig.from_pretrained(self.base, trust_remote_code=False, **SHAPES[name]))

    def policy(self, name: str, rank: int | None = None) -> Any:
        """The model with the recipe's adapter, or one of another rank; it is not the identity."""
        import torch

        lora = replace(self.params.lora, **({"r": rank, "alpha": 2 * rank} if rank else {}))
        policy = add_adapter(self.model(name), lora, self.params.seed)
        for weight_name, weight in policy.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=0.02)
        return policy


def set_up() -> Setting:
    """The recipe's params with SmolLM2, which is written on its first use."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        compose(RECIPE, Path(folder) / "params.yaml")
        params = load(Path(folder) / "params.yaml")
    set_up_process(params.hardware)
    base = CACHE / f"smollm2-{str(params.model.sha256)[:16]}"
    if not base.is_dir():
        with whole_folder(base) as partly:
            save(*dequantised(checked_gguf(params.model)), partly)
            write_json(partly / RECORD, base_record(params.model))
    return Setting(params, base, load_tokenizer(base))


def run(
    name: str,
    doc: str | None,
    cases: Mapping[str, Any],
    measured: Callable[[Any, Any], dict[str, Any]],
    alone: Callable[[Any, Any, str], int | None] | None = None,
    argv: Sequence[str] | None = None,
    start: Callable[[], Any] = set_up,
) -> None:
    """The command line of a benchmark: measure the chosen cases, and write each as soon as it is measured.

    Args:
        name: of the module, and of its file in `RESULTS`.
        doc: the module's docstring.
        cases: the headline first. Of each `sides` names ours and the peers, and `tiny()` is the same on a model of a
            few weights and few data, to try the code.
        measured: the figures of a case: `over` (peer to `compared`), `unit`, and more.
        alone: runs a side on the data that need most memory, and gives the peak if another process has it; None:
            memory is not measured.
        argv: None: the process's.
        start: gives what `measured` and `alone` take first.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"some of {', '.join(cases)}; all; none: the first")
    parser.add_argument("--tiny", type=Path, metavar="FOLDER", help="try the code on tiny models; results into FOLDER")
    parser.add_argument("--memory", metavar="SIDE", help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args(argv)
    if unknown := [one for one in given.cases if one not in (*cases, "all")]:
        parser.error(f"{unknown[0]} is none of the cases {', '.join(cases)}, all")
    setting = start()
    for key in cases if "all" in given.cases else given.cases or [next(iter(cases))]:
        case = cases[key].tiny() if given.tiny else cases[key]
        if given.memory:
            assert alone is not None
            print(alone(setting, case, given.memory) or peak())
            return
        figures = measured(setting, case)
        free_memory()
        if alone is not None and given.tiny:
            # In this process: what it holds is no result.
            figures["peak_memory_mib"] = {side: alone(setting, case, side) or peak() for side in case.sides}
        elif alone is not None:
            command = (f"benchmarks.{name}", key, "--memory")
            figures["peak_memory_mib"] = {side: peak_memory(*command, side) for side in case.sides}
        write_case(given.tiny or RESULTS, name, list(cases), key, figures)


def write_case(folder: Path, name: str, cases: Sequence[str], key: str, figures: Mapping[str, Any]) -> None:
    """Put the figures of a case into `folder/<name>.json`, with the machine, and say its ratios.

    Other cases there stay, unless they are none of `cases` any more.
    """
    file = folder / f"{name}.json"
    found = json.loads(file.read_text(encoding="utf-8"))["cases"] if file.is_file() else {}
    found[key] = {**figures, "machine": machine()}
    write_json(file, {"cases": {one: found[one] for one in cases if one in found}})
    for peer, one in figures["over"].items():
        print(f"{name} {key}: {one['ratio']} ({one['low']} to {one['high']}) times {peer}", file=sys.stderr)


@cache
def dialogues() -> tuple[list[Dialogue], str]:
    """EmpatheticDialogues of `CORPORA` where it is there, else the embedded sample; and which it is."""
    real = CORPORA / "empatheticdialogues"
    folder, name = (real, "EmpatheticDialogues") if real.is_dir() else (SAMPLE, "embedded sample")
    return empathetic_dialogues.read(folder)[0], name


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


def on_parts(work: Callable[[Any], object], parts: Sequence[Any]) -> Callable[[], float]:
    """A function that at each call does the work on the next part and returns its seconds."""
    left = iter(parts)
    return lambda: seconds(partial(work, next(left)))


def turns(*sides: Callable[[], float], rounds: int = ROUNDS) -> list[tuple[float, ...]]:
    """What every side returns, its own seconds, in each of `rounds` rounds after one round that does not count."""
    return [tuple(side() for side in sides) for _ in range(rounds + 1)][1:]


def alternate(*sides: Callable[[], object], rounds: int = ROUNDS) -> list[tuple[float, ...]]:
    """Seconds of every side in each of `rounds` rounds, after one round that does not count."""
    return turns(*(partial(seconds, side) for side in sides), rounds=rounds)


def compared(rounds: Sequence[tuple[float, ...]], amount: int, side: int = 1) -> dict[str, float]:
    """The first side against another, round by round.

    Args:
        rounds: of `alternate`.
        amount: what either side did in a round, in the case's unit.
        side: the peer's place in a round.

    Returns:
        `ratio` (median of the rounds), `low` and `high` (the least and the greatest), and what either side does a
        second (medians).
    """
    ratios = sorted(one[side] / one[0] for one in rounds)
    return {
        "ratio": round(median(ratios), 2),
        "low": round(ratios[0], 2),
        "high": round(ratios[-1], 2),
        "ours_per_second": round(amount / median(one[0] for one in rounds), 2),
        "peer_per_second": round(amount / median(one[side] for one in rounds), 2),
    }


def in_rounds(items: Sequence[Any], warm: int, amount: int) -> list[Sequence[Any]]:
    """`warm` of the items for the round that does not count, then `amount` for each that does: no two have any shared.

    Kernels made for the lengths of one round are then of no use to the next, as in a run.
    """
    if warm + ROUNDS * amount > len(items):
        raise ValueError(f"{len(items)} items are fewer than {warm} and {ROUNDS} rounds of {amount}")
    return [items[:warm], *(items[warm + i * amount :][:amount] for i in range(ROUNDS))]


class Side:
    """A side of training on the items of one round after the other. The first, which warms up, counts its FLOP."""

    def __init__(self, make: Callable[[Any], Callable[[], float]], parts: Sequence[Any]) -> None:
        self.make, self.parts = make, iter(parts)
        self.flops = 0

    def __call__(self) -> float:
        from torch.utils.flop_counter import FlopCounterMode

        # One model in memory at a time; what is freed stays with the process, as in a run.
        gc.collect()
        work = self.make(next(self.parts))
        if self.flops:
            return work()
        with FlopCounterMode(display=False) as counter:
            spent = work()
        self.flops = counter.get_total_flops()
        return spent


def compare(
    makers: Mapping[str, Callable[[Any], Callable[[], float]]],
    parts: Sequence[Sequence[Any]],
    unit: str,
    tokens: Callable[[Any], int],
    dtype: str,
) -> dict[str, Any]:
    """Ours against each peer in training: ratios, GFLOP an item, share of a matrix product's rate.

    Args:
        makers: side to a function that makes what trains on a round's items, and returns its seconds; ours first.
        parts: of `in_rounds`.
        unit: the items, in the plural.
        tokens: of an item; the FLOP of the warm-up are scaled by them to a round.
        dtype: bf16 or fp32.
    """
    sides = {name: Side(make, parts) for name, make in makers.items()}
    rounds, amount = turns(*sides.values(), rounds=len(parts) - 1), len(parts[1])
    rate = matmul_rate(dtype)
    share = sum(map(tokens, chain(*parts[1:]))) / len(rounds) / sum(map(tokens, parts[0]))
    flops = {name: side.flops * share for name, side in sides.items()}
    times = {name: median(one[i] for one in rounds) for i, name in enumerate(sides)}
    return {
        "unit": unit,
        "over": {name: compared(rounds, amount, i) for i, name in enumerate(sides) if i},
        "gflops_each": {name: round(value / amount / 1e9, 3) for name, value in flops.items()},
        "matmul_share": {name: round(value / times[name] / rate, 3) for name, value in flops.items()},
        "matmul_gflops": round(rate / 1e9),
        "amount": amount,
        "dtype": dtype,
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


def peak_memory(module: str, *arguments: str) -> int | str:
    """Peak resident memory in MiB of `python -m module arguments`, run to its end in a process of its own.

    Imports, model and data are part of it. The process prints its `peak` at its end.

    Returns:
        `KILLED` if it was, as Linux does where memory ends: the rates of the case, which took minutes, are kept.

    Raises:
        CalledProcessError: the process failed; what it wrote to stderr has been seen.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == -signal.SIGKILL:
        return KILLED
    done.check_returncode()
    return int(done.stdout.splitlines()[-1])


def peak(process: int | str = "self") -> int:
    """The most MiB that this process, or the one with that id, has held."""
    # Not ru_maxrss, in which Linux leaves what the process that started this one held.
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    kib = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(kib) // 1024
