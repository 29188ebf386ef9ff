"""Stage `dpo@eK`: one epoch of direct preference optimisation on that epoch's pairs.

    python -m stages.dpo e2

continues from the checkpoint or adapter in `rounds.e2.init` and writes a checkpoint to `models/dpo/e2`: adapter,
optimizer, schedule, random state, and the reference with its log-probabilities. `reports/curves/dpo/e2` has the curves
of training, and what the round moved on the held-out pairs in `data/pairs/e2.valid.parquet`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from attune.compute.memory import free_memory, retry_on_oom
from attune.config.params import load, named
from attune.config.schema import Hardware, Params
from attune.runtime.checkpoints import checkpoints
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.launch import run as in_ranks

BASE = Path("models/base")
PAIRS = Path("data/pairs")
TARGET = Path("models/dpo")
CURVES = Path("reports/curves/dpo")


def main(key: str, params: Params) -> None:
    """Write `models/dpo/<key>`."""
    from attune.models.check import check_encoders
    from attune.training.common.trainer import export_checkpoint
    from attune.training.dpo.round import train_round

    named(params.rounds, key, "rounds")
    on_main_process(lambda: check_encoders(params))
    pairs = PAIRS / f"{key}.parquet"
    with checkpoints(f"dpo@{key}", params) as folder:

        def attempt(hardware: Hardware) -> Path:
            return train_round(key, params.with_hardware(hardware), BASE, pairs, folder, CURVES / key)

        end = retry_on_oom(attempt, params.hardware, params.dpo)
        on_main_process(lambda: export_checkpoint(end, TARGET / key))
        if params.hardware.accelerate is None:
            on_main_process(lambda: write_movement(key, params))


def write_movement(key: str, params: Params) -> None:
    """Add to the curves of round `key` what it moved, and in the first round of a chain where that started.

    Not under FSDP, whose models need not fit into one GPU.
    """
    from attune.training.common.curves import write_curve
    from attune.training.dpo.movement import measure
    from attune.training.dpo.round import is_round, reference_adapter, trainer_state

    free_memory()
    end = TARGET / key
    moved = measure(BASE, end, reference_adapter(end), PAIRS / f"{key}.valid.parquet", params)
    if moved is None:
        print("what the round moved is not measured: no held-out pair, or another architecture", file=sys.stderr)
        return
    start, policy = moved
    first = not is_round(Path(params.rounds[key].init))
    step = int(trainer_state(end)["global_step"])
    for name, value in policy._asdict().items():
        points = {0: getattr(start, name)} if first else {}
        write_curve(CURVES / key, f"valid/{name}", points | {step: value})


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, round="a key of rounds")
        params = load()
        in_ranks(lambda: main(arguments.round, params), params.hardware)
