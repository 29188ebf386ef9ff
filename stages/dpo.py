"""Stage `dpo@eK`: one epoch of direct preference optimisation on that epoch's pairs.

    python -m stages.dpo e2

starts from the adapter, optimizer, schedule and random state of `dpo.rounds.e2.init` and writes the same to
`models/dpo/e2`, with the reference adapter and its log-probabilities, so that a round computes only those of new
replies. The rounds of a chain together give the weights that one run over all epochs would have given. A chain starts
from the adapter of SFT, or from the base model with a fresh adapter.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.checkpoints import checkpoints
from stages.dialogues import to_turns
from stages.errors import UserError, reported
from stages.launch import run as in_ranks
from stages.modeling.process import halving
from stages.params import load
from stages.ranks import by_first, of_first
from stages.sections import Hardware, Params

BASE = Path("models/base")
PAIRS = Path("data/pairs")
TARGET = Path("models/dpo")
CURVES = Path("reports/curves/dpo")
# In a round's checkpoint: the adapter that all rounds are held to, and its log-probabilities of all replies so far.
REFERENCE, ADAPTER, LOGPS = "reference", "adapter", "logps.parquet"


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
        The checkpoint at the round's end: adapter (safetensors), optimizer, schedule, random state, `reference/`.

    Raises:
        ReferenceGap: the log-probabilities in `init` are another reference's.
        ModelError: `dpo.max_length` exceeds the model's positions.
        UserError: there is no pair.
    """
    from stages.modeling.dpo import make_trainer
    from stages.modeling.loading import load_adapter, load_base, load_tokenizer, require_positions
    from stages.modeling.packed import prepare, unserved
    from stages.modeling.reference import complete, identity, with_reference
    from stages.modeling.resume import last_checkpoint
    from stages.modeling.training import counted_anew, redraw, run

    tokenizer = load_tokenizer(base)
    start = starting_adapter(Path(params.dpo.rounds[key].init), base, params, folder)
    adapter, later = reference_of(start), is_later_round(start)
    policy = load_adapter(load_base(base, params.hardware), adapter, trainable=True)
    require_positions(policy, "dpo.max_length", params.dpo.max_length)
    encoded, ahead = encode(tokenizer, pairs, params.dpo.max_length)
    if not encoded:
        raise UserError(f"{pairs} holds no pair: run `dvc repro -f pairs@{key}`")
    if unserved(policy) is None:
        prepare(policy, params.hardware, params.dpo.max_length)
        reference = identity(base, adapter, params.hardware)
        earlier = start / REFERENCE / LOGPS if later else None
        # The policy still is the reference: its own weights come with the checkpoint.
        asked = [*encoded, *ahead]
        logps = complete(policy, asked, folder / LOGPS, earlier, reference, params.hardware, tokenizer.pad_token_id)
        encoded = with_reference(encoded, logps)
    trainer = make_trainer(policy, tokenizer, encoded, params.dpo, params.hardware, params.seed, folder)
    over = of_first(lambda: is_over(folder, start if later else None))
    if not over:
        run(trainer, curves, start=counted_anew(start, trainer, folder) if later else None)
    # The trainer writes a checkpoint at the end of the epoch.
    end = Path(of_first(lambda: str(last_checkpoint(folder))))
    if over:
        # DVC has removed the stage's outs before it ran it again.
        by_first(lambda: redraw(end, curves))
    by_first(lambda: hand_on_reference(adapter, folder / LOGPS, end / REFERENCE))
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

    def write() -> None:
        if not fresh.is_dir():
            save_adapter(add_adapter(load_base(base, params.hardware), params.lora, params.seed), fresh)

    by_first(write)
    return fresh


def is_over(folder: Path, start: Path | None) -> bool:
    """Whether the round has been trained to its end and was killed behind it: going on would train the next epoch."""
    from stages.modeling.resume import last_checkpoint

    def epochs(checkpoint: Path | None) -> float:
        return json.loads((checkpoint / "trainer_state.json").read_text())["epoch"] if checkpoint else 0

    return bool(epochs(last_checkpoint(folder)) >= round(epochs(start)) + 1)


def is_later_round(init: Path) -> bool:
    """Whether `init` is the checkpoint of a round, which carries the reference, and not the adapter of SFT."""
    return (init / REFERENCE).is_dir()


def reference_of(init: Path) -> Path:
    """The adapter that the first round started from."""
    return init / REFERENCE / ADAPTER if is_later_round(init) else init


def hand_on_reference(adapter: Path, logps: Path, target: Path) -> None:
    """Put the reference into a round's checkpoint: its adapter, and the log-probabilities known so far.

    The adapter lies one folder deeper than transformers looks for adapters to load when training goes on from a
    checkpoint: the reference is not to come into the memory of the next round.
    """
    shutil.rmtree(target, ignore_errors=True)
    (target / ADAPTER).mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, target / ADAPTER / name)
    if logps.is_file():
        shutil.copyfile(logps, target / LOGPS)


def encode(tokenizer: Any, pairs: Path, max_length: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pairs of a parquet file as token ids, and those that later rounds will make of the same contexts."""
    import pyarrow.parquet as pq
    from tqdm import tqdm

    from stages.modeling.dpo import encode_pair

    found, ahead = [], []
    for row in tqdm(pq.read_table(pairs).to_pylist(), desc="tokens", unit="pair"):
        asked = (tokenizer, to_turns(row["prompt"]), row["chosen"])
        found.append(encode_pair(*asked, row["rejected"], max_length))
        ahead += [encode_pair(*asked, rejected, max_length) for rejected in row.get("ahead") or ()]
    return found, ahead


def main(key: str, params: Params) -> None:
    """Write `models/dpo/<key>`."""
    from stages.modeling.training import keep

    pairs = PAIRS / f"{key}.parquet"
    deps = [Path("stages"), BASE, pairs, Path(params.dpo.rounds[key].init)]
    with checkpoints(f"dpo@{key}", (params.dpo, params.lora, params.hardware, params.seed), deps) as folder:

        def attempt(hardware: Hardware) -> Path:
            return train_round(key, replace(params, hardware=hardware), BASE, pairs, folder, CURVES / key)

        end = halving(attempt, params.hardware, params.dpo)
        by_first(lambda: keep(end, TARGET / key))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("round", help="a key of dpo.rounds")
    key = parser.parse_args().round
    with reported():
        params = load()
        in_ranks(lambda: main(key, params), params.hardware)
