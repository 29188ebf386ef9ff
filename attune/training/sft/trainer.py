"""transformers' Trainer for SFT, without two computations that do not change the loss.

- The head computes logits only at positions that predict a token of the loss mask, about four in ten: the logits over
  the vocabulary are the largest tensor of a step.
- The micro-batches of an effective batch are regrouped by length, which saves padding. The effective batch stays the
  same, and with it the gradient of an optimizer step.

The loss is that of transformers: the mean over the tokens of the loss mask in the effective batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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

    A model without a position-wise head (`has_positionwise_head`) is trained by its plain forward pass, with a warning.

    Args:
        model: a causal language model or a PeftModel, on `compute.device`.
        hardware: device and precision.
        arguments: of transformers' `Trainer`; the collator is `pad_supervised`.
    """
    from transformers import Trainer

    class SupervisedTrainer(Trainer):
        """Trainer with micro-batches by length and logits at the loss positions only."""

        def get_train_dataloader(self) -> Any:
            if self.args.world_size == 1:
                return super().get_train_dataloader()
            return shared_loader(self, {"input_ids": [0, 0], "labels": [IGNORED, IGNORED]})

        def get_batch_samples(self, *args: Any) -> Any:
            batches, items = super().get_batch_samples(*args)
            return by_length(batches), items

        def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            with logits_only_at(head, loss_positions(inputs["labels"])):
                return super().compute_loss(model, inputs, *args, **kwargs)

    optimize_for_cpu(model, hardware)
    compile_layers(model, hardware)
    if not has_positionwise_head(model, hardware):
        warnings.warn(
            f"{type(model).__name__} has no position-wise head: logits are computed at all positions. Training is "
            "correct, but slower",
            stacklevel=2,
        )
        return Trainer(model=model, **arguments)
    head = model.get_output_embeddings()
    return SupervisedTrainer(model=model, compute_loss_func=token_loss, **arguments)


def loss_positions(labels: torch.Tensor) -> torch.Tensor:
    """The positions whose next token is in the loss mask: (B, T) booleans from (B, T) labels."""
    import torch

    return torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))


def token_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy in nats of the logits (N, V) at the `loss_positions` of `labels` (B, T).

    The sum over the N tokens is divided by `num_items_in_batch`, the tokens in the loss mask of the effective batch;
    without it by N.
    """
    import torch

    targets = labels[:, 1:]
    targets = targets[targets != IGNORED]
    total = torch.nn.functional.cross_entropy(outputs.logits.float(), targets, reduction="sum")
    return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)


@contextmanager
def logits_only_at(head: nn.Module, kept: torch.Tensor) -> Iterator[None]:
    """Within the block `head` takes only the N hidden states where `kept` (B, T) is true, and returns (N, V).

    What the model does before its head (BERT's prediction transform) and after it (Gemma's softcap, Granite's scale) is
    not affected.
    """
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][kept], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def has_positionwise_head(model: Any, hardware: Hardware) -> bool:
    """Whether the head computes the logits of a position from that position alone; tried on a few tokens."""
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
            full = model(input_ids=ids).logits[kept]
            with logits_only_at(head, kept):
                partial = model(input_ids=ids).logits
    except (RuntimeError, IndexError, TypeError):
        return False
    finally:
        model.train(was_training)
    # Matrix products of different sizes round differently. A head that is not position-wise is off by far more.
    tolerance = 0.02 * float(full.abs().max())
    return partial.shape == full.shape and torch.allclose(partial, full, rtol=0, atol=tolerance)
