"""What the classifiers behind the scores share: batches, the training loop, and how good an answer is."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.compute.process import autocast
from attune.runtime.errors import Stopped, UserError, noted_signals, writing
from attune.runtime.sealed import drop_older, seal, settle

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import AdamW

    from attune.config.schema import Hardware

# Texts encoded at once: on two cores more is no faster.
BATCH = 64
MAX_NORM = 1.0
NAME, STATE = "step", "state.pt"
# Batches whose examples are sorted by length together: little padding, and still another mixture in every epoch.
POOL = 8
BINS = 10


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
    """Train a classifier with AdamW and linear decay; `model` is left in eval mode, with the last epoch's weights.

    Args:
        model: parameters that need no gradient are neither trained nor kept in the checkpoint.
        groups: parameters and their peak learning rate.
        lengths: of the N examples, in tokens.
        loss: from a batch, as indices of examples, to its loss.
        epochs: passes.
        batch_size: examples a step.
        hardware: device and precision.
        seed: keys order and dropout of each epoch, which therefore hang on nothing that came before.
        checkpoint: folder of what to go on from, written every `runtime.save_every` steps and after each epoch.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; the step that was reached is kept.
        StorageError: the checkpoint cannot be written.
        UserError: there is nothing to learn from, or the loss is no number any more.
    """
    import torch
    from torch.optim import AdamW
    from tqdm import tqdm

    if not lengths:
        raise UserError(f"{seed.rpartition(':')[2]}: there is no example to learn from: take another corpus")

    optimizer = AdamW([{"params": list(group), "peak": rate} for group, rate in groups], fused=True)
    chosen = {id(parameter) for group, _ in groups for parameter in group}
    trained = [parameter for parameter in model.parameters() if id(parameter) in chosen]
    done, random_state = _resume(model, optimizer, checkpoint)
    steps = -(-len(lengths) // batch_size)
    model.train()
    with noted_signals() as noted:
        for epoch in range(done // steps, epochs):
            rng = random.Random(f"{seed}:{epoch}")
            torch.manual_seed(rng.getrandbits(63))
            order = mixed_batches(lengths, batch_size, rng)[done % steps :]
            if done % steps:
                _set_random_state(random_state, hardware)
            name = f"{seed.rpartition(':')[2]}, epoch {epoch + 1}"
            for batch in tqdm(order, initial=done % steps, total=steps, desc=name, unit="step"):
                _set_rates(optimizer, 1 - done / (steps * epochs))
                with autocast(hardware):
                    value = loss(batch)
                done += 1
                _require_finite(value, name, done)
                _step(value, trained, optimizer)
                if noted or done % hardware.save_every == 0 or done % steps == 0:
                    _keep(model, optimizer, done, checkpoint, hardware)
                if noted:
                    raise Stopped(
                        noted[0], f"step {done} of {steps * epochs} of {name} is kept; the same command goes on there"
                    )
    model.eval()


def mixed_batches(lengths: Sequence[int], size: int, rng: random.Random) -> list[list[int]]:
    """Indices in random batches of similar length."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    found = []
    for start in range(0, len(order), size * POOL):
        pool = sorted(order[start : start + size * POOL], key=lambda i: lengths[i])
        found += [pool[i : i + size] for i in range(0, len(pool), size)]
    rng.shuffle(found)
    return found


def pad(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unequal length as one tensor, and its mask, (B, T): true where a row is.

    Behind a row stand zeros, which is some token's id, too: no mask lets them through.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    padded = pad_sequence(list(rows), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def accuracy(truth: Sequence[int], guessed: Sequence[int]) -> float:
    """Share of equal labels in percent, 0 without any."""
    return 100 * sum(a == b for a, b in zip(truth, guessed, strict=True)) / max(len(truth), 1)


def f1(truth: Sequence[int], guessed: Sequence[int], label: int) -> float:
    """F1 of one label in percent; 0 where it is in neither."""
    both = sum(a == b == label for a, b in zip(truth, guessed, strict=True))
    return 200 * both / max(truth.count(label) + guessed.count(label), 1)


def macro_f1(truth: Sequence[int], guessed: Sequence[int]) -> float:
    """Mean F1 in percent over the labels that occur on either side, each with the same weight."""
    labels = sorted({*truth, *guessed})
    return sum(f1(truth, guessed, label) for label in labels) / max(len(labels), 1)


def calibration_error(truth: Sequence[int], probabilities: Sequence[Sequence[float]]) -> float:
    """Expected calibration error in percent (Guo et al. 2017, equation 3), 0 without examples.

    The likeliest labels' probabilities are put into ten bins of equal width; the error is the mean over examples of
    the difference between their bin's mean probability and its share of right labels.
    """
    sums = [0.0] * BINS
    for label, row in zip(truth, probabilities, strict=True):
        top = max(row)
        sums[min(int(top * BINS), BINS - 1)] += top - (row.index(top) == label)
    return 100 * sum(map(abs, sums)) / max(len(truth), 1)


def _require_finite(loss: torch.Tensor, name: str, step: int) -> None:
    if not loss.isfinite():
        raise UserError(
            f"{name}: the loss is {float(loss)} at step {step}: lower the learning rates of this stage, or take "
            "compute.dtype=fp32"
        )


def _step(loss: torch.Tensor, trained: Sequence[nn.Parameter], optimizer: AdamW) -> None:
    import torch

    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
    optimizer.step()
    optimizer.zero_grad()


def _set_rates(optimizer: AdamW, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def _keep(model: nn.Module, optimizer: AdamW, step: int, checkpoint: Path, hardware: Hardware) -> None:
    import torch

    parameters = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in parameters if not parameter.requires_grad}
    state = {name: value for name, value in model.state_dict().items() if name not in frozen}
    random_state = {"cpu": torch.get_rng_state()}
    if hardware.device == "cuda":
        random_state["cuda"] = torch.cuda.get_rng_state()
    kept = {"step": step, "model": state, "optimizer": optimizer.state_dict(), "random": random_state}
    target = checkpoint / f"{NAME}-{step}"
    need = 3 * sum(value.nbytes for value in state.values())
    with writing(target, need, undo=lambda: shutil.rmtree(target, ignore_errors=True)):
        target.mkdir(parents=True, exist_ok=True)
        torch.save(kept, target / STATE)
        seal(target)
    drop_older(checkpoint, NAME)


def _resume(model: nn.Module, optimizer: AdamW, checkpoint: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Steps that are done, after putting their weights in place, and the random state behind them; 0 without."""
    import torch

    newest = settle(checkpoint, NAME)
    if newest is None:
        return 0, {}
    kept = torch.load(newest / STATE, weights_only=True)
    model.load_state_dict(kept["model"], strict=False)  # what is frozen is not in it
    optimizer.load_state_dict(kept["optimizer"])
    return int(kept["step"]), kept["random"]


def _set_random_state(state: dict[str, torch.Tensor], hardware: Hardware) -> None:
    import torch

    torch.set_rng_state(state["cpu"])
    if hardware.device == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
