"""Stage `dpo@eK`: one epoch of direct preference optimisation on that epoch's pairs.

    python -m stages.dpo e2

continues from the checkpoint or adapter in `rounds.e2.init` and writes a checkpoint to `models/dpo/e2`: adapter,
optimizer, schedule, random state, and the reference with its log-probabilities.
"""

from __future__ import annotations

from pathlib import Path

from attune.compute.memory import retry_on_oom
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
    from attune.training.common.trainer import export_checkpoint
    from attune.training.dpo.round import train_round

    named(params.rounds, key, "rounds")
    pairs = PAIRS / f"{key}.parquet"
    with checkpoints(f"dpo@{key}", params) as folder:

        def attempt(hardware: Hardware) -> Path:
            return train_round(key, params.with_hardware(hardware), BASE, pairs, folder, CURVES / key)

        end = retry_on_oom(attempt, params.hardware, params.dpo)
        on_main_process(lambda: export_checkpoint(end, TARGET / key))


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, round="a key of rounds")
        params = load()
        in_ranks(lambda: main(arguments.round, params), params.hardware)
