"""Interrupt and resume training: sealed checkpoints, signals, and running means that transformers does not save.

The classifiers have a separate training loop (`classifiers.common.classifier.fit`) with another checkpoint state. Both
loops share the code for safe checkpoints: `runtime.sealed`, `noted_signals` and `writing`.
"""

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
# In a checkpoint of FSDP, as Accelerate calls it.
OF_FSDP = "pytorch_model_fsdp.bin"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`."""
    return newest_whole(folder, NAME)


def train(trainer: Trainer, start: Path | None) -> None:
    """Train from the newest complete checkpoint in the trainer's folder, else from `start`, else from the beginning.

    Every checkpoint is sealed, and holds the running means that transformers and TRL do not save, so that the curves of
    a resumed run equal those of an uninterrupted run.

    Raises:
        Stopped: SIGTERM or Ctrl-C; there is a checkpoint of the current step.
        StorageError: a checkpoint cannot be written; its partial files are removed.
        UserError: the loss is not finite, or one of FSDP's checkpoints would be resumed without FSDP, or the reverse.
    """
    folder = Path(str(trainer.args.output_dir))
    newest = broadcast_from_main(lambda: str(settle(folder, NAME) or ""))
    checkpoint = Path(newest) if newest else start
    if checkpoint is not None:
        require_same_form(checkpoint, trainer.is_fsdp_enabled)
    with noted_signals() as noted, writing(folder, lambda: _bytes(trainer), lambda: _drop_unsealed(folder)):
        trainer.add_callback(_seal_callback(trainer))
        trainer.add_callback(_stop_callback(noted))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # All ranks wait here for the main process, which may still be sealing.
    if number := all_reduce_max(noted[0] if noted else 0):
        state = trainer.state
        raise Stopped(number, f"step {state.global_step} of {state.max_steps} is saved; the same command resumes there")


def require_same_form(checkpoint: Path, fsdp: bool) -> None:
    """Check that the trainer reads the form that the checkpoint has: FSDP writes weights and optimizer as no other.

    Raises:
        UserError: it does not.
    """
    if (checkpoint / OF_FSDP).is_file() is not fsdp:
        now, then = ("with", "without") if fsdp else ("without", "with")
        raise UserError(
            f"{checkpoint} was trained {then} FSDP and would be continued {now} it: set ranks.accelerate as it was, or "
            "run the chain again from its first round"
        )


def is_sealed(folder: Path, step: int) -> bool:
    """Whether the checkpoint of a step has already been written."""
    return (folder / f"{NAME}-{step}" / MANIFEST).is_file()


def _seal_callback(trainer: Any) -> Any:
    from transformers import TrainerCallback

    class Seal(TrainerCallback):
        """Seal checkpoints; save and restore the running sums of the next log entry.

        Uses private attributes of transformers 5.23 (`_tr_loss`, `_globalstep_last_logged`) and of TRL 1.16
        (`_metrics`, `_total_train_tokens`).
        """

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(str(args.output_dir)) / f"{NAME}-{state.global_step}"
            if not (folder / RUNNING).is_file():
                return
            saved = json.loads((folder / RUNNING).read_text(encoding="utf-8"))
            trainer._tr_loss += saved["losses"][rank()]
            trainer._globalstep_last_logged = saved["logged"]
            if hasattr(trainer, "_metrics"):
                trainer._metrics["train"].update(saved["metrics"])
                trainer._total_train_tokens = saved["tokens"]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            require_finite(logs, state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # A log entry has the mean over the ranks, so the loss of every rank is saved.
            losses = all_gather(trainer._tr_loss.item())
            require_finite({"loss": sum(losses)}, state.global_step)
            folder = Path(str(args.output_dir)) / f"{NAME}-{state.global_step}"
            running = {
                "losses": losses,
                "logged": trainer._globalstep_last_logged,
                "metrics": dict(getattr(trainer, "_metrics", {}).get("train", {})),
                "tokens": getattr(trainer, "_total_train_tokens", 0),
            }

            def write() -> None:
                write_json(folder / RUNNING, running)
                seal(folder)

            # All ranks have written their files by now, and none continues before the checkpoint is sealed.
            on_main_process(write)

    return Seal()


def _stop_callback(noted: list[int]) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        """After a signal on any rank, save a checkpoint and stop at the end of the current step on all ranks."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if all_reduce_max(noted[0] if noted else 0):
                control.should_save = control.should_training_stop = True
            return control

    return Stop()


def require_finite(logs: dict[str, Any], step: int) -> None:
    """Check that loss and gradient norm are finite.

    Raises:
        UserError: a value is not finite; names the step.
    """
    for name in ("loss", "grad_norm"):
        value = float(logs.get(name, 0.0))
        if not math.isfinite(value):
            raise UserError(
                f"{name} is {value} at or shortly before step {step}: lower the learning rate of this stage, or set "
                "compute.dtype=fp32; the last checkpoint before it is kept"
            )


def _bytes(trainer: Any) -> int:
    """The size of a checkpoint: the trained weights and the two moments of AdamW."""
    return sum(3 * p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)


def _drop_unsealed(folder: Path) -> None:
    for path in folder.glob(f"{NAME}-*") if is_main_process() else []:
        if not (path / MANIFEST).is_file():
            shutil.rmtree(path, ignore_errors=True)
