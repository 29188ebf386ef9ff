"""The progress bar and the DVCLive curves of a training run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attune.runtime.io import write_text

CURVES = (
    "loss",
    "learning_rate",
    "grad_norm",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
)


def progress_callback() -> Any:
    """A progress bar that shows the loss, without a printed line for every log entry."""
    from transformers import ProgressCallback

    class Progress(ProgressCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if self.training_bar is not None and logs and "loss" in logs:
                self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4f}")

    return Progress()


def curves_callback(folder: Path) -> Any:
    """DVCLive curves in `folder`, with the optimizer step as x.

    transformers' DVCLiveCallback uses the number of log calls as x, and after a resume it loses the earlier rows. This
    callback first replays the log history of the checkpoint, so that the files are those of an uninterrupted run.
    """
    from transformers import TrainerCallback

    class Curves(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.live = replay(state.log_history, folder)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                _add_row(self.live, state.global_step, logs)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.live.end()

    return Curves()


def replay(history: list[dict[str, float]], folder: Path) -> Any:
    """DVCLive in `folder` with the rows of `history` and no others."""
    from dvclive.live import Live

    shutil.rmtree(folder, ignore_errors=True)
    live = Live(str(folder), dvcyaml=None, report=None, save_dvc_exp=False, monitor_system=False)
    for entry in history:
        _add_row(live, int(entry["step"]), entry)
    return live


def write_curve(folder: Path, name: str, points: Mapping[int, float]) -> None:
    """Write a curve beside those of a run that has ended, in DVCLive's form.

    Args:
        folder: of the run's curves.
        name: of the curve; a slash makes a folder.
        points: optimizer step to value.
    """
    rows = "".join(f"{step}\t{value!r}\n" for step, value in points.items())
    write_text(folder / "plots" / "metrics" / f"{name}.tsv", f"step\t{name.rpartition('/')[2]}\n{rows}")


def _add_row(live: Any, step: int, logs: dict[str, float]) -> None:
    # The last log call of a run has no loss, only TRL's means since the previous log entry. No checkpoint stores it, so
    # its row would depend on when a run was killed.
    if "loss" not in logs:
        return
    live.step = step
    for name in CURVES:
        if name in logs:
            live.log_metric(name, float(logs[name]))
