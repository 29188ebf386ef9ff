"""A trainer for supervised fine-tuning that leaves out the work whose result nobody reads.

- The head projects the positions that predict a supervised token, and no others: of a dialogue's tokens about four in
  ten, and logits over the vocabulary are the largest tensor of a step.
- The micro-batches of an effective batch are dealt anew by length, so that little of them is padding. The effective
  batch, and with it what an optimizer step sees, stays as it was drawn.

The loss is transformers' own: the mean over the supervised tokens of the effective batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from attune.compute.process import autocast
from attune.cpu.optimize import optimize_for_cpu
from attune.models.loading import compile_layers
from attune.training.common.collate import IGNORED, by_length
from attune.training.common.distributed_batches import shared_loader

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import Trainer

    from attune.config.schema import Hardware


def supervised_trainer(model: Any, hardware: Hardware, **arguments: Any) -> Trainer:
    """A trainer of `model` on examples with `input_ids` and `labels`.

    A model whose head cannot be found or does not project position by position (`projects_alone`) is trained by its
    plain forward pass, with a warning.

    Args:
        model: a causal language model or a PeftModel on one, on `compute.device`.
        hardware: device.
        arguments: of transformers' `Trainer`; the collator is `pad_supervised`.
    """
    from transformers import Trainer

    class SupervisedTrainer(Trainer):
        """transformers' trainer but for the order within an effective batch and the positions that are projected."""

        def get_train_dataloader(self) -> Any:
            if self.args.world_size == 1:
                return super().get_train_dataloader()
            return shared_loader(self, {"input_ids": [0, 0], "labels": [IGNORED, IGNORED]})

        def get_batch_samples(self, *args: Any) -> Any:
            batches, items = super().get_batch_samples(*args)
            return by_length(batches), items

        def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            with projecting(head, predicts(inputs["labels"])) if head is not None else nullcontext():
                return super().compute_loss(model, inputs, *args, **kwargs)

    optimize_for_cpu(model, hardware)
    compile_layers(model, hardware)
    head = model.get_output_embeddings() if projects_alone(model, hardware) else None
    if head is None:
        warnings.warn(
            f"{type(model).__name__}: no head was found that projects each position by itself, so that all positions "
            "are projected: training is right, and slower than it could be",
            stacklevel=2,
        )
    return (
        Trainer(model=model, **arguments)
        if head is None
        else SupervisedTrainer(model=model, compute_loss_func=token_loss, **arguments)
    )


def predicts(labels: torch.Tensor) -> torch.Tensor:
    """Where the next token carries a loss: (B, T) booleans from (B, T) labels."""
    import torch

    return torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))


def token_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy in nats of logits (N, vocabulary) at the positions of `predicts(labels)`.

    The sum over `num_items_in_batch`, the supervised tokens of the effective batch; without it the mean.
    """
    import torch

    targets = labels[:, 1:]
    targets = targets[targets != IGNORED]
    total = torch.nn.functional.cross_entropy(outputs.logits.float(), targets, reduction="sum")
    return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)


@contextmanager
def projecting(head: nn.Module, kept: torch.Tensor) -> Iterator[None]:
    """Within the block `head` projects the hidden states where `kept` (B, T) is true: its output is (N, vocabulary).

    What a model does before its head (BERT's prediction transform) and behind it (Gemma's cap, Granite's scale) stays
    the model's own.
    """
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][kept], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def projects_alone(model: Any, hardware: Hardware) -> bool:
    """Whether the model's head gives the same logits for some positions alone as for all of them, on a few tokens."""
    import torch

    head = model.get_output_embeddings()
    if head is None:
        return False
    device = next(head.parameters()).device
    ids = torch.arange(6, device=device).view(2, 3)
    kept = torch.tensor([[False, True, False], [True, False, True]], device=device)
    was_training = model.training
    try:
        with torch.no_grad(), autocast(hardware):
            model.eval()
            all_of_them = model(input_ids=ids).logits[kept]
            with projecting(head, kept):
                alone = model(input_ids=ids).logits
    except (RuntimeError, IndexError, TypeError):
        return False
    finally:
        model.train(was_training)
    # Products of unequal size round differently; another function of the states differs by its own size.
    tolerance = 0.02 * float(all_of_them.abs().max())
    return alone.shape == all_of_them.shape and torch.allclose(alone, all_of_them, rtol=0, atol=tolerance)
