"""Code shared by all training runs: trainer arguments, the run itself, callbacks, and the export of its result."""

from __future__ import annotations

import json
import logging
import math
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.config.schema import LOGGING_STEPS
from attune.models.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from attune.models.quantization import optimizer_name
from attune.runtime.distributed import on_main_process, world_size
from attune.runtime.errors import UserError
from attune.runtime.io import canonicalize_model_files, link_or_copy, whole_folder, write_json
from attune.runtime.sealed import KEPT, MANIFEST
from attune.training.common.curves import curves_callback, progress_callback, replay
from attune.training.common.resume import RUNNING, is_sealed, train

if TYPE_CHECKING:
    from transformers import Trainer

    from attune.config.schema import Dpo, Hardware, Sft

# PEFT 0.21 and TRL 1.16 still read the old name of transformers' `is_activation_checkpointing`.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated", category=FutureWarning)

# Files of a checkpoint that its export leaves out: logs, seals, and a pickle, which is never loaded.
LEFTOVERS = ("training_args.bin", "README.md", MANIFEST, RUNNING)


def common_arguments(section: Sft | Dpo, hardware: Hardware, seed: int, folder: Path) -> dict[str, Any]:
    """Keyword arguments of `TrainingArguments` and its subclasses, from the params.

    The effective batch is `section.batch_size` for any number of ranks:

        batch_size = ranks x micro-batch size x gradient accumulation steps

    Raises:
        UserError: the batch cannot be split equally over the processes, in full micro-batches.
        ModelError: `training.optimizer` is not available.
    """
    processes = world_size()
    share = section.batch_size // processes
    micro = min(share, hardware.micro_batch_size)
    if not share or section.batch_size % (processes * micro):
        name = type(section).__name__.lower()
        raise UserError(
            f"{name}.batch_size = {section.batch_size} cannot be shared by {processes} processes in micro-batches of "
            f"{hardware.micro_batch_size} (training.micro_batch_size): change one of these three values"
        )
    return {
        "num_train_epochs": section.epochs,
        "learning_rate": section.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "lr_scheduler_type": section.lr_scheduler,
        "warmup_steps": section.warmup_steps,
        "max_grad_norm": section.max_grad_norm,
        "weight_decay": section.weight_decay,
        "optim": optimizer_name(hardware),
        **run_arguments(hardware, seed, folder),
    }


def run_arguments(hardware: Hardware, seed: int, folder: Path) -> dict[str, Any]:
    """Keyword arguments of `TrainingArguments` that are no hyperparameters: device, precision, checkpoints, logging."""
    return {
        "output_dir": str(folder),
        "seed": seed,
        "use_cpu": hardware.device == "cpu",
        "bf16": hardware.precision == "bf16",
        # Set even if false: TRL 1.16's default of the old name, gradient_checkpointing, is true.
        "activation_checkpointing": hardware.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": hardware.save_every,
        "save_total_limit": KEPT,
        "logging_first_step": True,
        # `require_finite` must see a loss that is not finite; the filter would leave it out of the mean.
        "logging_nan_inf_filter": False,
        "logging_steps": LOGGING_STEPS,
        "report_to": "none",
        "dataloader_pin_memory": hardware.device == "cuda",
        "remove_unused_columns": False,
        # Every trained weight has a gradient in every step.
        "ddp_find_unused_parameters": False,
    }


def run(trainer: Trainer, curves: Path, start: Path | None = None) -> None:
    """Train from the newest complete checkpoint of an interrupted run, else from `start`, else from the beginning.

    Args:
        trainer: its `output_dir` is the stage's checkpoint folder.
        curves: folder for the DVCLive curves (`plots/metrics/<metric>.tsv`, a row for each logged step).
        start: checkpoint of an earlier DPO round, with optimizer, schedule and random state.

    Raises:
        Stopped, StorageError, UserError: as `resume.train`.
    """
    from transformers import PrinterCallback, ProgressCallback

    set_up_ranks(trainer)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress_callback())
    trainer.add_callback(curves_callback(curves))
    train(trainer, start)


def redraw(checkpoint: Path, curves: Path) -> None:
    """Rewrite the curves of a finished run from the log history of its last checkpoint.

    Args:
        checkpoint: the last checkpoint of the run.
        curves: folder for the DVCLive curves.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    replay(state["log_history"], curves).end()


def rescale_step_count(start: Path, trainer: Trainer, folder: Path) -> Path:
    """Rescale the step counter of an earlier round's checkpoint to the steps per epoch of this round.

    transformers derives the epoch and the position in the schedule from the number of steps. If the rounds have unequal
    numbers of pairs, the steps of e epochs are e times this round's steps per epoch.

    Returns:
        `start`, or a copy of it in `folder` with the new counter and without the log history, whose steps are those of
        the earlier round.
    """
    import torch

    state = json.loads((start / "trainer_state.json").read_text(encoding="utf-8"))
    # Computed, since creating the data loader would draw a random number.
    pairs: Any = trainer.train_dataset
    batches = -(-len(pairs) // (trainer.args.per_device_train_batch_size * trainer.args.world_size))
    steps = -(-batches // trainer.args.gradient_accumulation_steps)
    done = round(state["epoch"]) * steps
    if state["global_step"] == done:
        return start
    copy = folder / "start"

    def write() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(start, copy, copy_function=link_or_copy)
        scheduler = torch.load(copy / "scheduler.pt", weights_only=True)
        # Removed, since it would be written through the link.
        (copy / "scheduler.pt").unlink()
        torch.save(scheduler | {"last_epoch": done, "_step_count": done + 1}, copy / "scheduler.pt")
        write_json(copy / "trainer_state.json", state | {"global_step": done, "log_history": []})

    on_main_process(write)
    return copy


def set_up_ranks(trainer: Trainer) -> None:
    """Settings of DDP and FSDP2 that `TrainingArguments` has no names for; without effect in a single process.

    - DDP's buckets are the gradients, which would otherwise be in memory twice.
    - FSDP2 computes in bf16 and adds gradients up in fp32, and outputs keep their precision: Accelerate's policy would
      round log-probabilities, which are sums over a reply, to bf16.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    accelerator: Any = trainer.accelerator
    accelerator.ddp_handler.gradient_as_bucket_view = True
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and accelerator.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)


def export_checkpoint(checkpoint: Path, target: Path) -> None:
    """Link or copy a checkpoint to a stage's out, without `LEFTOVERS`. Atomic: the folder is complete or not there.

    Raises:
        StorageError: it cannot be written.
    """
    need = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    with whole_folder(target, need) as partial:
        shutil.copytree(checkpoint, partial, ignore=shutil.ignore_patterns(*LEFTOVERS), copy_function=link_or_copy)
        canonicalize_model_files(partial)


def export_adapter(checkpoint: Path, target: Path) -> None:
    """Link or copy only the adapter of a checkpoint to a stage's out. Atomic, as `export_checkpoint`.

    With FSDP each rank holds a part of the weights only; the checkpoint has all of them.

    Raises:
        StorageError: it cannot be written.
    """
    with whole_folder(target, (checkpoint / ADAPTER_WEIGHTS).stat().st_size) as partial:
        partial.mkdir()
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            link_or_copy(checkpoint / name, partial / name)
        canonicalize_model_files(partial)


def save_adapter(model: Any, target: Path) -> None:
    """Write an adapter (safetensors and configuration) to a stage's out. Atomic, as `export_checkpoint`.

    Raises:
        StorageError: it cannot be written.
    """
    need = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    with whole_folder(target, need) as partial:
        model.save_pretrained(str(partial))
        (partial / "README.md").unlink(missing_ok=True)
        canonicalize_model_files(partial)


def stop_after_epoch() -> Any:
    """A callback that saves a checkpoint and stops training at the end of the epoch: a DPO round is one epoch.

    `num_train_epochs` covers all rounds, so that the schedule does, too; the next round resumes from the checkpoint.
    """
    from transformers import TrainerCallback

    class StopAfterEpoch(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            # Writing the checkpoint of the last step a second time could leave it damaged if the process is killed.
            control.should_save = not is_sealed(Path(str(args.output_dir)), state.global_step)
            control.should_training_stop = True
            return control

    return StopAfterEpoch()


def assert_first_loss(expected: float, tolerance: float, likelihood_weight: float = 0.0) -> Any:
    """A callback that stops a run whose loss at the first step is not `expected`.

    In the first step of the first round the policy equals the reference, so that every margin is 0: the loss of DPO is
    ln 2, every other loss has its own value. Another value means that the reference is not the model that training
    starts from.

    Args:
        expected: the loss at margin 0.
        tolerance: the largest difference of it.
        likelihood_weight: the weight in the loss of the logged `nll_loss`, which depends on the model and is taken off.
    """
    from transformers import TrainerCallback

    class AssertFirstLoss(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            # The last log call of a run has no loss, and comes at step 1 if the round is a single step.
            if state.global_step != 1 or "loss" not in logs:
                return
            loss = logs["loss"] - likelihood_weight * logs.get("nll_loss", 0.0)
            if not math.isclose(loss, expected, abs_tol=tolerance):
                raise UserError(
                    f"the loss at the first step is {loss:.4f}, not {expected:.4f}: the reference model is not "
                    "the model that the first round starts from"
                )

    return AssertFirstLoss()
