"""One round of DPO: one epoch on that epoch's pairs, from the checkpoint of the previous round.

The first round of a chain starts from the adapter of SFT, or from the base model with a new adapter. That adapter stays
the reference of all rounds. Optimizer, learning-rate schedule and random state pass from round to round, so the rounds
together give the weights of one run over all epochs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.models.loading import add_adapter, is_adapter, load_adapter, load_base, load_tokenizer, require_positions
from attune.runtime.distributed import broadcast_from_main, on_main_process
from attune.runtime.errors import UserError
from attune.runtime.io import link_or_copy
from attune.training.common.packed_forward import prepare, unsupported_reason
from attune.training.common.resume import last_checkpoint
from attune.training.common.trainer import redraw, rescale_step_count, run, save_adapter
from attune.training.dpo.encoding import encode_pairs
from attune.training.dpo.reference_logps import at_shared_length, complete, identity, with_reference
from attune.training.dpo.trainer import make_trainer

if TYPE_CHECKING:
    from attune.config.schema import Params

# In a round's checkpoint: the reference adapter, and its log-probabilities of all replies so far.
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
    tokenizer = load_tokenizer(base)
    start = starting_adapter(Path(params.rounds[key].init), base, params, folder)
    reference, previous = reference_adapter(start), start if is_round(start) else None
    # A later round, too, begins with the reference's weights: its own come with the checkpoint that it resumes from.
    policy = load_adapter(load_base(base, params.hardware), reference, trainable=True)
    require_positions(policy, "dpo.max_length", params.dpo.max_length)
    encoded, future = encode_pairs(tokenizer, pairs, params.dpo.max_length, params.dpo.overlong == "drop")
    if not encoded:
        raise UserError(
            f"{pairs} holds no pair to train on: raise dpo.max_length = {params.dpo.max_length} with dpo.overlong = "
            f"drop, else run `dvc repro -f pairs@{key}`"
        )
    if unsupported_reason(policy) is None and params.dpo.has_reference:
        prepare(policy, params.hardware, params.dpo.max_length)
        hashed = identity(base, reference, params.hardware)
        earlier = previous / REFERENCE / LOGPS if previous else None
        # The pairs of later rounds as well: a context is then read once for all rounds.
        all_pairs = [*encoded, *future]
        if params.dpo.ld_alpha is not None:
            all_pairs += map(at_shared_length, list(all_pairs))
        logps = complete(policy, all_pairs, folder / LOGPS, earlier, hashed, params.hardware, tokenizer.pad_token_id)
        encoded = with_reference(encoded, logps, params.dpo.ld_alpha)
    trainer = make_trainer(policy, tokenizer, encoded, params.dpo, params.hardware, params.seed, folder)
    end = _train(trainer, previous, folder, curves)
    on_main_process(lambda: save_reference(reference, folder / LOGPS, end / REFERENCE))
    return end


def _train(trainer: Any, previous: Path | None, folder: Path, curves: Path) -> Path:
    """Train to the end of the round, unless that is done, and return the last checkpoint."""
    finished = broadcast_from_main(lambda: is_finished(folder, previous))
    if not finished:
        run(trainer, curves, start=rescale_step_count(previous, trainer, folder) if previous else None)
    # The trainer writes a checkpoint at the end of the epoch.
    end = Path(broadcast_from_main(lambda: str(last_checkpoint(folder))))
    if finished:
        # DVC has deleted the curves, which are outs of the stage, before it ran the stage again.
        on_main_process(lambda: redraw(end, curves))
    return end


def starting_adapter(init: Path, base: Path, params: Params, folder: Path) -> Path:
    """The adapter that a round starts from: `init`, or a new adapter below `folder` if `init` is the base model.

    B of a new adapter is 0 (Hu et al. 2022, section 4.1), so the base model with it is the base model: it is the
    reference of a chain that starts from the base, and every round has an adapter to keep.

    Args:
        init: folder of an adapter or of the base model.
        base: folder of the base model.
        params: LoRA hyperparameters, hardware and seed.
        folder: for checkpoints.
    """
    if is_adapter(init):
        return init
    new = folder / "fresh"

    def write() -> None:
        if not new.is_dir():
            save_adapter(add_adapter(load_base(base, params.hardware), params.lora, params.seed), new)

    on_main_process(write)
    return new


def is_finished(folder: Path, previous: Path | None) -> bool:
    """True if training finished but the process died before DVC recorded it; `run` would train the next epoch.

    Args:
        folder: the round's checkpoints.
        previous: the checkpoint of the previous round, or None in the first one.
    """

    def epochs(checkpoint: Path | None) -> float:
        return trainer_state(checkpoint)["epoch"] if checkpoint else 0.0

    return bool(epochs(last_checkpoint(folder)) >= round(epochs(previous)) + 1)


def trainer_state(checkpoint: Path) -> dict[str, float]:
    """What transformers counts: `epoch` and `global_step`, the optimizer steps, of all rounds of the chain."""
    state: dict[str, float] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state


def is_round(init: Path) -> bool:
    """True if `init` is the checkpoint of a round, which contains its reference, and not an adapter of SFT."""
    return (init / REFERENCE).is_dir()


def reference_adapter(init: Path) -> Path:
    """The adapter that the first round started from."""
    return init / REFERENCE / ADAPTER if is_round(init) else init


def save_reference(adapter: Path, logps: Path, target: Path) -> None:
    """Put the reference into a round's checkpoint: its adapter, linked or copied, and its log-probabilities so far.

    The adapter is stored two folders deep: on resuming from a checkpoint transformers loads every adapter that is one
    folder deep, and the next round must not have the reference in memory.

    Args:
        adapter: folder of the reference's adapter.
        logps: file of `complete`; it may be missing.
        target: `reference/` of the checkpoint.
    """
    shutil.rmtree(target, ignore_errors=True)
    (target / ADAPTER).mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        link_or_copy(adapter / name, target / ADAPTER / name)
    if logps.is_file():
        shutil.copyfile(logps, target / LOGPS)
