"""Stage `dpo@eK`: one epoch of direct preference optimisation on that epoch's pairs.

    python -m stages.dpo e2

starts from the adapter, optimizer, schedule and random state of `rounds.e2.init` and writes the same to
`models/dpo/e2`, with the reference adapter and its log-probabilities, so that a round computes only those of new
replies. The rounds of a chain together give the weights that one run over all epochs would have given. A chain starts
from the adapter of SFT, or from the base model with a fresh adapter.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from attune.compute.memory import retry_on_oom
from attune.config.params import load
from attune.config.schema import Hardware, Params
from attune.data.dialogue import to_turns
from attune.runtime.checkpoints import checkpoints
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import broadcast_from_main, on_main_process
from attune.runtime.errors import UserError, reported
from attune.runtime.launch import run as in_ranks

BASE = Path("models/base")
PAIRS = Path("data/pairs")
TARGET = Path("models/dpo")
CURVES = Path("reports/curves/dpo")
# In a round's checkpoint: the adapter that all rounds are held to, and its log-probabilities of all replies so far.
REFERENCE, ADAPTER, LOGPS = "reference", "adapter", "logps.parquet"


def train_round(key: str, params: Params, base: Path, pairs: Path, folder: Path, curves: Path) -> Path:
    """Train one round.

    Args:
        key: of `params.rounds`.
        params: the run's.
        base: folder of the base model.
        pairs: parquet file of the round's pairs.
        folder: for checkpoints.
        curves: folder for the training curves.

    Returns:
        The checkpoint at the round's end: adapter (safetensors), optimizer, schedule, random state, `reference/`.

    Raises:
        ModelError: the log-probabilities in `init` are another reference's.
        ModelError: `dpo.max_length` exceeds the model's positions.
        UserError: there is no pair.
    """
    from attune.models.loading import load_adapter, load_base, load_tokenizer, require_positions
    from attune.training.common.resume import last_checkpoint
    from attune.training.common.trainer import redraw, rescale_step_count, run
    from attune.training.dpo.packed_forward import prepare, unsupported_reason
    from attune.training.dpo.reference_logps import complete, identity, with_reference
    from attune.training.dpo.trainer import make_trainer

    tokenizer = load_tokenizer(base)
    start = starting_adapter(Path(params.rounds[key].init), base, params, folder)
    adapter, later = reference_of(start), is_later_round(start)
    policy = load_adapter(load_base(base, params.hardware), adapter, trainable=True)
    require_positions(policy, "dpo.max_length", params.dpo.max_length)
    encoded, future_rejected = encode(tokenizer, pairs, params.dpo.max_length)
    if not encoded:
        raise UserError(f"{pairs} holds no pair: run `dvc repro -f pairs@{key}`")
    if unsupported_reason(policy) is None:
        prepare(policy, params.hardware, params.dpo.max_length)
        reference = identity(base, adapter, params.hardware)
        earlier = start / REFERENCE / LOGPS if later else None
        # The policy still is the reference: its own weights come with the checkpoint.
        asked = [*encoded, *future_rejected]
        logps = complete(policy, asked, folder / LOGPS, earlier, reference, params.hardware, tokenizer.pad_token_id)
        encoded = with_reference(encoded, logps)
    trainer = make_trainer(policy, tokenizer, encoded, params.dpo, params.hardware, params.seed, folder)
    over = broadcast_from_main(lambda: is_over(folder, start if later else None))
    if not over:
        run(trainer, curves, start=rescale_step_count(start, trainer, folder) if later else None)
    # The trainer writes a checkpoint at the end of the epoch.
    end = Path(broadcast_from_main(lambda: str(last_checkpoint(folder))))
    if over:
        # DVC has removed the stage's outs before it ran it again.
        on_main_process(lambda: redraw(end, curves))
    on_main_process(lambda: save_reference(adapter, folder / LOGPS, end / REFERENCE))
    return end


def starting_adapter(init: Path, base: Path, params: Params, folder: Path) -> Path:
    """The adapter in `init`; where that is the base model, a fresh one below `folder`, whose B is 0: it is the base.

    So the reference of a chain that starts from the base is the base itself, and every round has an adapter to keep.
    """
    from attune.models.loading import add_adapter, is_adapter, load_base
    from attune.training.common.trainer import save_adapter

    if is_adapter(init):
        return init
    fresh = folder / "fresh"

    def write() -> None:
        if not fresh.is_dir():
            save_adapter(add_adapter(load_base(base, params.hardware), params.lora, params.seed), fresh)

    on_main_process(write)
    return fresh


def is_over(folder: Path, start: Path | None) -> bool:
    """Whether the round has been trained to its end and was killed behind it: going on would train the next epoch."""
    from attune.training.common.resume import last_checkpoint

    def epochs(checkpoint: Path | None) -> float:
        return json.loads((checkpoint / "trainer_state.json").read_text())["epoch"] if checkpoint else 0

    return bool(epochs(last_checkpoint(folder)) >= round(epochs(start)) + 1)


def is_later_round(init: Path) -> bool:
    """Whether `init` is the checkpoint of a round, which carries the reference, and not the adapter of SFT."""
    return (init / REFERENCE).is_dir()


def reference_of(init: Path) -> Path:
    """The adapter that the first round started from."""
    return init / REFERENCE / ADAPTER if is_later_round(init) else init


def save_reference(adapter: Path, logps: Path, target: Path) -> None:
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

    from attune.training.dpo.trainer import encode_pair

    found, future_rejected = [], []
    for row in tqdm(pq.read_table(pairs).to_pylist(), desc="tokens", unit="pair"):
        asked = (tokenizer, to_turns(row["prompt"]), row["chosen"])
        found.append(encode_pair(*asked, row["rejected"], max_length))
        future_rejected += [encode_pair(*asked, rejected, max_length) for rejected in row.get("future_rejected") or ()]
    return found, future_rejected


def main(key: str, params: Params) -> None:
    """Write `models/dpo/<key>`."""
    from attune.training.common.trainer import export_checkpoint

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
