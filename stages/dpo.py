"""Stage `dpo@eK`: one epoch of direct preference optimisation on that epoch's pairs.

    python -m stages.dpo e2

starts from the adapter, optimizer, schedule and random state of `dpo.rounds.e2.init` and writes the same to
`models/dpo/e2`. The rounds of a chain together give the weights that one run over all epochs would have given. A chain
starts from the adapter of SFT, or from the base model with a fresh adapter.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from stages.checkpoints import checkpoints
from stages.dialogues import to_turns
from stages.errors import reported
from stages.params import Params, load

BASE = Path("models/base")
PAIRS = Path("data/pairs")
TARGET = Path("models/dpo")
CURVES = Path("reports/curves/dpo")


def train_round(key: str, params: Params, base: Path, pairs: Path, folder: Path, curves: Path) -> Path:
    """Train one round.

    Args:
        key: of `params.dpo.rounds`.
        params: the run's.
        base: folder of the base model.
        pairs: parquet file of the round's pairs.
        folder: for checkpoints.
        curves: folder for the training curves.

    Returns:
        The checkpoint at the round's end: adapter (safetensors), optimizer, schedule, random state.
    """
    from stages.modeling.dpo import make_trainer
    from stages.modeling.loading import load_adapter, load_base, load_tokenizer
    from stages.modeling.training import last_checkpoint, run

    tokenizer = load_tokenizer(base)
    start = starting_adapter(Path(params.dpo.rounds[key].init), base, params, folder)
    policy = load_adapter(load_base(base, params.hardware), reference_of(start), trainable=True)
    encoded = encode(tokenizer, pairs, params.dpo.max_length)
    trainer = make_trainer(policy, tokenizer, encoded, params.dpo, params.hardware, params.seed, folder)
    run(trainer, curves, start=start if is_later_round(start) else None)
    end = last_checkpoint(folder)
    assert end is not None, "the trainer writes a checkpoint at the end of the epoch"
    return end


def starting_adapter(init: Path, base: Path, params: Params, folder: Path) -> Path:
    """The adapter in `init`; where that is the base model, a fresh one below `folder`, whose B is 0: it is the base.

    So the reference of a chain that starts from the base is the base itself, and every round has an adapter to keep.
    """
    from stages.modeling.loading import add_adapter, is_adapter, load_base
    from stages.modeling.training import save_adapter

    if is_adapter(init):
        return init
    fresh = folder / "fresh"
    if not fresh.is_dir():
        save_adapter(add_adapter(load_base(base, params.hardware), params.lora, params.seed), fresh)
    return fresh


def is_later_round(init: Path) -> bool:
    """Whether `init` is the checkpoint of a round, which carries the reference adapter, and not the adapter of SFT."""
    return (init / "ref").is_dir()


def reference_of(init: Path) -> Path:
    """The adapter that the first round started from."""
    return init / "ref" if is_later_round(init) else init


def encode(tokenizer: Any, pairs: Path, max_length: int) -> list[dict[str, list[int]]]:
    """The pairs of a parquet file as token ids."""
    import pyarrow.parquet as pq
    from tqdm import tqdm

    from stages.modeling.dpo import encode_pair

    rows = tqdm(pq.read_table(pairs).to_pylist(), desc="tokens", unit="pair")
    return [encode_pair(tokenizer, to_turns(r["prompt"]), r["chosen"], r["rejected"], max_length) for r in rows]


def main(key: str, params: Params) -> None:
    """Write `models/dpo/<key>`."""
    from stages.modeling.training import keep

    pairs = PAIRS / f"{key}.parquet"
    deps = [Path("stages"), BASE, pairs, Path(params.dpo.rounds[key].init)]
    with checkpoints(f"dpo@{key}", (params.dpo, params.lora, params.hardware, params.seed), deps) as folder:
        keep(train_round(key, params, BASE, pairs, folder, CURVES / key), TARGET / key)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("round", help="a key of dpo.rounds")
    with reported():
        main(parser.parse_args().round, load())
