"""What every training stage shares: the trainer's arguments, progress, DVCLive curves, resume and a clean result."""

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
from attune.runtime.io import canonicalize_model_files, whole_folder, write_json
from attune.runtime.sealed import KEPT, MANIFEST
from attune.training.common.resume import RUNNING, is_sealed, train

if TYPE_CHECKING:
    from transformers import Trainer

    from attune.config.schema import Dpo, Hardware, Sft

# transformers 5 renamed gradient_checkpointing; TRL 1.16 and transformers itself still set or read the old name.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing. is deprecated", category=FutureWarning)

# What a finished run needs no more: logs of the library, and a pickle that nothing here ever loads.
LEFTOVERS = ("training_args.bin", "README.md", MANIFEST, RUNNING)
CURVES = (
    "loss",
    "learning_rate",
    "grad_norm",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
)


def common_arguments(section: Sft | Dpo, hardware: Hardware, seed: int, folder: Path) -> dict[str, Any]:
    """Keyword arguments of `TrainingArguments` and its subclasses, from the params.

    The effective batch is `section.batch_size` however many ranks share it.

    Raises:
        UserError: the processes cannot share the batch equally, in whole micro-batches.
        ModelError: `training.optimizer` cannot be had.
    """
    processes = world_size()
    share = section.batch_size // processes
    micro = min(share, hardware.micro_batch_size)
    if not share or section.batch_size % (processes * micro):
        name = type(section).__name__.lower()
        raise UserError(
            f"{name}.batch_size = {section.batch_size} cannot be shared by {processes} processes in micro-batches of "
            f"{hardware.micro_batch_size} (training.micro_batch_size): change one of the three"
        )
    return {
        "num_train_epochs": section.epochs,
        "learning_rate": section.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "lr_scheduler_type": section.lr_scheduler,
        "warmup_steps": section.warmup_steps,
        "optim": optimizer_name(hardware),
        **run_arguments(hardware, seed, folder),
    }


def run_arguments(hardware: Hardware, seed: int, folder: Path) -> dict[str, Any]:
    """Those that do not change what is computed: device, precision, checkpoints, logging."""
    return {
        "output_dir": str(folder),
        "seed": seed,
        "use_cpu": hardware.device == "cpu",
        "bf16": hardware.dtype == "bf16",
        # The old name, since TRL 1.16's default for it, True, would win over the new one.
        "gradient_checkpointing": hardware.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": hardware.save_every,
        "save_total_limit": KEPT,
        "logging_first_step": True,
        # A loss that is no number is to be seen (`require_finite`), not to be left out of the mean.
        "logging_nan_inf_filter": False,
        "logging_steps": LOGGING_STEPS,
        "report_to": "none",
        "dataloader_pin_memory": hardware.device == "cuda",
        "remove_unused_columns": False,
        # All that is trained is used in every step.
        "ddp_find_unused_parameters": False,
    }


def run(trainer: Trainer, curves: Path, start: Path | None = None) -> None:
    """Train, from the newest whole checkpoint of an interrupted run, else from `start`, else from the beginning.

    Args:
        trainer: its `output_dir` is the stage's checkpoint folder.
        curves: folder for the DVCLive curves (`plots/metrics/<metric>.tsv`, a row a logged step).
        start: checkpoint of an earlier round, with optimizer, schedule and random state.

    Raises:
        Stopped, StorageError, UserError: as `resume.train`.
    """
    from transformers import PrinterCallback, ProgressCallback

    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_progress_callback())
    trainer.add_callback(_curves_callback(curves))
    train(trainer, start)


def redraw(checkpoint: Path, curves: Path) -> None:
    """Write the curves of a run that `checkpoint` is the end of: those that `run` had written before it was killed.

    Args:
        checkpoint: the last one of the run.
        curves: folder for the DVCLive curves.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    _replayed(state["log_history"], curves).end()


def rescale_step_count(start: Path, trainer: Trainer, folder: Path) -> Path:
    """`start`, the checkpoint of an earlier round, as if its epochs had had as many steps as the trainer's have.

    transformers reads epoch and place in the schedule off the number of steps. Where rounds have unequal numbers of
    pairs, a copy below `folder` counts anew, and leaves out the history, whose steps are others.
    """
    import torch

    state = json.loads((start / "trainer_state.json").read_text(encoding="utf-8"))
    # Not from the data loader, whose making draws a random number.
    pairs: Any = trainer.train_dataset
    batches = -(-len(pairs) // (trainer.args.per_device_train_batch_size * trainer.args.world_size))
    steps = -(-batches // trainer.args.gradient_accumulation_steps)
    done = round(state["epoch"]) * steps
    if state["global_step"] == done:
        return start
    copy = folder / "start"

    def write() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(start, copy)
        scheduler = torch.load(copy / "scheduler.pt", weights_only=True)
        torch.save(scheduler | {"last_epoch": done, "_step_count": done + 1}, copy / "scheduler.pt")
        write_json(copy / "trainer_state.json", state | {"global_step": done, "log_history": []})

    on_main_process(write)
    return copy


def export_checkpoint(checkpoint: Path, target: Path) -> None:
    """Copy a checkpoint to a stage's out, without what nobody needs, appearing whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    need = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    with whole_folder(target, need) as partial:
        shutil.copytree(checkpoint, partial, ignore=shutil.ignore_patterns(*LEFTOVERS))
        canonicalize_model_files(partial)


def export_adapter(checkpoint: Path, target: Path) -> None:
    """Copy the adapter of a checkpoint, and nothing else, to a stage's out, whole or not at all.

    Where ranks have a part of the weights each (FSDP, ZeRO-3), a checkpoint is what has all of them.

    Raises:
        StorageError: it cannot be written.
    """
    with whole_folder(target, (checkpoint / ADAPTER_WEIGHTS).stat().st_size) as partial:
        partial.mkdir()
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(checkpoint / name, partial / name)
        canonicalize_model_files(partial)


def save_adapter(model: Any, target: Path) -> None:
    """Write an adapter (safetensors and its configuration) to a stage's out, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    need = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)
    with whole_folder(target, need) as partial:
        model.save_pretrained(str(partial))
        (partial / "README.md").unlink(missing_ok=True)
        canonicalize_model_files(partial)


def stop_after_epoch() -> Any:
    """A callback that ends training, with a checkpoint, at the end of the epoch: a round of DPO is one epoch.

    The arguments name all epochs, so that the schedule runs over all rounds; the next resumes from the checkpoint.
    """
    from transformers import TrainerCallback

    class StopAfterEpoch(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            # Where the last step has been saved, saving it again could spoil it.
            control.should_save = not is_sealed(Path(str(args.output_dir)), state.global_step)
            control.should_training_stop = True
            return control

    return StopAfterEpoch()


def assert_first_loss(expected: float, tolerance: float) -> Any:
    """A callback that ends a run whose loss at the first step is not `expected`.

    At step 0 the policy is the reference, every margin is 0 and the DPO loss is ln 2. Anything else means that the
    reference is another model than the one that training starts from.
    """
    from transformers import TrainerCallback

    class AssertFirstLoss(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            # The log at the end of training has none; where a round is one step, it comes at step 1, too.
            if state.global_step != 1 or "loss" not in logs:
                return
            if not math.isclose(logs["loss"], expected, abs_tol=tolerance):
                raise UserError(
                    f"the loss at the first step is {logs['loss']:.4f}, not {expected:.4f}: the reference model is not "
                    "the model that the first round starts from"
                )

    return AssertFirstLoss()


def _progress_callback() -> Any:
    from transformers import ProgressCallback

    class Progress(ProgressCallback):
        """The progress bar, with the loss beside it instead of a line for every log call."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if self.training_bar is not None and logs and "loss" in logs:
                self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4f}")

    return Progress()


def _curves_callback(folder: Path) -> Any:
    from transformers import TrainerCallback

    class Curves(TrainerCallback):
        """DVCLive with the optimizer step as x.

        transformers' own DVCLiveCallback counts log calls instead, and after a resume it has lost what came before;
        this one first replays the history that a checkpoint carries, so the files are the same as without a kill.
        """

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.live = _replayed(state.log_history, folder)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                _add_row(self.live, state.global_step, logs)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.live.end()

    return Curves()


def _replayed(history: list[dict[str, float]], folder: Path) -> Any:
    """DVCLive in `folder`, which holds the rows of `history` and nothing else."""
    from dvclive.live import Live

    shutil.rmtree(folder, ignore_errors=True)
    live = Live(str(folder), dvcyaml=None, report=None, save_dvc_exp=False, monitor_system=False)
    for entry in history:
        _add_row(live, int(entry["step"]), entry)
    return live


def _add_row(live: Any, step: int, logs: dict[str, float]) -> None:
    # The log at the end of training has TRL's means since the last one, and no loss. No checkpoint knows it: a row of
    # it would be there or not depending on when a run was killed.
    if "loss" not in logs:
        return
    live.step = step
    for name in CURVES:
        if name in logs:
            live.log_metric(name, float(logs[name]))
