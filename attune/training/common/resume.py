"""How training is interrupted and goes on: checkpoints that are known to be whole, and signals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.runtime.distributed import (
    all_gather,
    all_reduce_max,
    broadcast_from_main,
    is_main_process,
    on_main_process,
    rank,
)
from attune.runtime.errors import Stopped, UserError, noted_signals, writing
from attune.runtime.io import write_json
from attune.runtime.sealed import MANIFEST, newest_whole, seal, settle

if TYPE_CHECKING:
    from transformers import Trainer

NAME = "checkpoint"
RUNNING = "running.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of `folder` that is whole."""
    return newest_whole(folder, NAME)


def train(trainer: Trainer, start: Path | None) -> None:
    """Train from the newest whole checkpoint in the trainer's folder, else from `start`, else from the beginning.

    Every checkpoint is sealed, with the running means that transformers and TRL leave out of theirs: curves go on, too.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; there is a checkpoint of the step that was reached.
        StorageError: a checkpoint cannot be written; what there was of it is removed.
        UserError: the loss is no number any more.
    """
    folder = Path(str(trainer.args.output_dir))
    whole = broadcast_from_main(lambda: str(settle(folder, NAME) or ""))
    checkpoint = Path(whole) if whole else start
    with noted_signals() as noted, writing(folder, lambda: _bytes(trainer), lambda: _drop_unsealed(folder)):
        trainer.add_callback(_seal_callback(trainer))
        trainer.add_callback(_stop_callback(noted))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # All ranks wait here for the first, which may still be sealing.
    if number := all_reduce_max(noted[0] if noted else 0):
        state = trainer.state
        raise Stopped(number, f"step {state.global_step} of {state.max_steps} is kept; the same command goes on there")


def is_sealed(folder: Path, step: int) -> bool:
    """Whether the checkpoint of a step has been written already."""
    return (folder / f"{NAME}-{step}" / MANIFEST).is_file()


def _seal_callback(trainer: Any) -> Any:
    from transformers import TrainerCallback

    class Seal(TrainerCallback):
        """Seals checkpoints; keeps and restores what a log averages that has not been written yet.

        Attributes of transformers 5.23 (`_tr_loss`, `_globalstep_last_logged`) and of TRL 1.16 (`_metrics`,
        `_total_train_tokens`).
        """

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(str(args.output_dir)) / f"{NAME}-{state.global_step}"
            if not (folder / RUNNING).is_file():
                return
            kept = json.loads((folder / RUNNING).read_text(encoding="utf-8"))
            trainer._tr_loss += kept["losses"][rank()]
            trainer._globalstep_last_logged = kept["logged"]
            if hasattr(trainer, "_metrics"):
                trainer._metrics["train"].update(kept["metrics"])
                trainer._total_train_tokens = kept["tokens"]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            require_finite(logs, state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Of each rank: a log has their mean.
            losses = all_gather(trainer._tr_loss.item())
            require_finite({"loss": sum(losses)}, state.global_step)
            folder = Path(str(args.output_dir)) / f"{NAME}-{state.global_step}"
            kept = {
                "losses": losses,
                "logged": trainer._globalstep_last_logged,
                "metrics": dict(getattr(trainer, "_metrics", {}).get("train", {})),
                "tokens": getattr(trainer, "_total_train_tokens", 0),
            }

            def write() -> None:
                write_json(folder / RUNNING, kept)
                seal(folder)

            # All ranks have written what they keep, and none goes on before the checkpoint is whole.
            on_main_process(write)

    return Seal()


def _stop_callback(noted: list[int]) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        """Ends training with a checkpoint at the end of the step in which a signal came, on all ranks in the same."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if all_reduce_max(noted[0] if noted else 0):
                control.should_save = control.should_training_stop = True
            return control

    return Stop()


def require_finite(logs: dict[str, Any], step: int) -> None:
    """Check that loss and gradient are numbers.

    Raises:
        UserError: one is not; names the step.
    """
    for name in ("loss", "grad_norm"):
        value = float(logs.get(name, 0.0))
        if not math.isfinite(value):
            raise UserError(
                f"{name} is {value} at or shortly before step {step}: lower the learning rate of this stage, or take "
                "compute.dtype=fp32; the last checkpoint before it is kept"
            )


def _bytes(trainer: Any) -> int:
    """Of a checkpoint: what is trained, and two moments of it."""
    return sum(3 * p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)


def _drop_unsealed(folder: Path) -> None:
    for path in folder.glob(f"{NAME}-*") if is_main_process() else []:
        if not (path / MANIFEST).is_file():
            shutil.rmtree(path, ignore_errors=True)
