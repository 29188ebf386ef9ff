"""Stage `dpo@eK`: one epoch of direct preference optimisation on that epoch's pairs.

    python -m stages.dpo e2

continues from the checkpoint or adapter in `dpo.rounds.e2.init` and writes its own checkpoint to `models/dpo/e2`:
adapter, optimizer, schedule, random state, and the reference with its log-probabilities.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from attune.config.params import load
from attune.config.schema import Hardware, Params
from attune.runtime.checkpoints import checkpoints
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.launch import run as in_ranks
from attune.training.common.memory import retry_on_oom

BASE = Path("models/base")
PAIRS = Path("data/pairs")
TARGET = Path("models/dpo")
CURVES = Path("reports/curves/dpo")


def main(key: str, params: Params) -> None:
    """Write `models/dpo/<key>`."""
    from attune.training.common.trainer import export_checkpoint
    from attune.training.dpo.round import train_round

    pairs = PAIRS / f"{key}.parquet"
    deps = [Path("stages"), BASE, pairs, Path(params.dpo.rounds[key].init)]
    with checkpoints(f"dpo@{key}", (params.dpo, params.lora, params.hardware, params.seed), deps) as folder:

        def attempt(hardware: Hardware) -> Path:
            return train_round(key, replace(params, hardware=hardware), BASE, pairs, folder, CURVES / key)

        end = retry_on_oom(attempt, params.hardware, params.dpo)
        on_main_process(lambda: export_checkpoint(end, TARGET / key))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("round", help="a key of dpo.rounds")
    key = parser.parse_args().round
    with reported():
        params = load()
        in_ranks(lambda: main(key, params), params.hardware)
