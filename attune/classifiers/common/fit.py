"""The training loop of the classifiers, with checkpoints."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.classifiers.common.batching import mixed_batches
from attune.compute.process import autocast
from attune.runtime.errors import Stopped, UserError, noted_signals, writing
from attune.runtime.sealed import drop_older, seal, settle

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import AdamW

    from attune.config.schema import Hardware

MAX_GRAD_NORM = 1.0
NAME, STATE = "step", "state.pt"


def fit(
    model: nn.Module,
    groups: Sequence[tuple[Sequence[nn.Parameter], float]],
    lengths: Sequence[int],
    loss: Callable[[list[int]], torch.Tensor],
    *,
    epochs: int,
    batch_size: int,
    hardware: Hardware,
    seed: str,
    checkpoint: Path,
) -> None:
    """Train a classifier with AdamW and linear decay; leaves `model` in eval mode, with the weights of the last epoch.

    Args:
        model: parameters that need no gradient are neither trained nor saved in checkpoints.
        groups: parameters and their peak learning rate.
        lengths: tokens of the N examples.
        loss: of a batch, given as indices of examples.
        epochs: passes over the examples.
        batch_size: examples per step.
        hardware: device and precision.
        seed: of order and dropout; each epoch has its own, so that a resumed epoch is the same. The part after the last
            colon names the classifier in messages.
        checkpoint: folder to resume from, written every `runtime.save_every` steps and after each epoch.

    Raises:
        Stopped: SIGTERM or Ctrl-C; the last step is saved.
        StorageError: the checkpoint cannot be written.
        UserError: there are no examples, or the loss is not finite.
    """
    from tqdm import tqdm

    if not lengths:
        raise UserError(f"{seed.rpartition(':')[2]}: there are no examples to train on: choose another corpus")
    optimizer, trained = _optimizer(model, groups)
    step, random_state = _resume(model, optimizer, checkpoint)
    steps_per_epoch = -(-len(lengths) // batch_size)
    total = steps_per_epoch * epochs
    model.train()
    with noted_signals() as signals:
        for epoch in range(step // steps_per_epoch, epochs):
            done = step % steps_per_epoch
            batches = _seeded_batches(lengths, batch_size, f"{seed}:{epoch}")[done:]
            if done:  # the seed is that of the epoch's first step
                _set_random_state(random_state, hardware)
            name = f"{seed.rpartition(':')[2]}, epoch {epoch + 1}"
            for batch in tqdm(batches, initial=done, total=steps_per_epoch, desc=name, unit="step"):
                _set_learning_rates(optimizer, 1 - step / total)
                with autocast(hardware):
                    value = loss(batch)
                step += 1
                _require_finite(value, name, step)
                _update(value, trained, optimizer)
                if signals or step % hardware.save_every == 0 or step % steps_per_epoch == 0:
                    _save(model, optimizer, step, checkpoint, hardware)
                if signals:
                    raise Stopped(signals[0], f"step {step} of {total} of {name} is saved; the same command resumes")
    model.eval()


def _optimizer(
    model: nn.Module, groups: Sequence[tuple[Sequence[nn.Parameter], float]]
) -> tuple[AdamW, list[nn.Parameter]]:
    """AdamW of the groups, and their parameters in the model's order, in which gradients are clipped."""
    from torch.optim import AdamW

    optimizer = AdamW([{"params": list(group), "peak": rate} for group, rate in groups], fused=True)
    grouped = {id(parameter) for group, _ in groups for parameter in group}
    return optimizer, [parameter for parameter in model.parameters() if id(parameter) in grouped]


def _seeded_batches(lengths: Sequence[int], batch_size: int, seed: str) -> list[list[int]]:
    """The batches of an epoch as indices of examples, after seeding torch for its dropout."""
    import torch

    rng = random.Random(seed)
    torch.manual_seed(rng.getrandbits(63))
    return mixed_batches(lengths, batch_size, rng)


def _require_finite(loss: torch.Tensor, name: str, step: int) -> None:
    if not loss.isfinite():
        raise UserError(
            f"{name}: the loss is {loss.item()} at step {step}: lower the learning rates of this stage, or set "
            "compute.dtype=fp32"
        )


def _update(loss: torch.Tensor, trained: Sequence[nn.Parameter], optimizer: AdamW) -> None:
    import torch

    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()


def _set_learning_rates(optimizer: AdamW, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _save(model: nn.Module, optimizer: AdamW, step: int, checkpoint: Path, hardware: Hardware) -> None:
    import torch

    parameters = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in parameters if not parameter.requires_grad}
    weights = {name: value for name, value in model.state_dict().items() if name not in frozen}
    random_state = {"cpu": torch.get_rng_state()}
    if hardware.device == "cuda":
        random_state["cuda"] = torch.cuda.get_rng_state()
    state = {"step": step, "model": weights, "optimizer": optimizer.state_dict(), "random": random_state}
    target = checkpoint / f"{NAME}-{step}"
    # Weights and the two moments of AdamW.
    size = 3 * sum(value.nbytes for value in weights.values())
    with writing(target, size, undo=lambda: shutil.rmtree(target, ignore_errors=True)):
        target.mkdir(parents=True, exist_ok=True)
        torch.save(state, target / STATE)
        seal(target)
    drop_older(checkpoint, NAME)


def _resume(model: nn.Module, optimizer: AdamW, checkpoint: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Load the newest checkpoint; returns its step and random state, or 0 and nothing without a checkpoint."""
    import torch

    newest = settle(checkpoint, NAME)
    if newest is None:
        return 0, {}
    state = torch.load(newest / STATE, weights_only=True)
    model.load_state_dict(state["model"], strict=False)  # frozen parameters are not in it
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), state["random"]


def _set_random_state(state: dict[str, torch.Tensor], hardware: Hardware) -> None:
    import torch

    torch.set_rng_state(state["cpu"])
    if hardware.device == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
