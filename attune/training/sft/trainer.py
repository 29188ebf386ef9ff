"""transformers' Trainer for SFT, without computations that do not change the loss.

- The head computes logits only at positions that predict a token of the loss mask, about four in ten: the logits over
  the vocabulary are the largest tensor of a step.
- The micro-batches of an effective batch are regrouped by length, which saves padding. The effective batch stays the
  same, and with it the gradient of an optimizer step.
- On a CPU a micro-batch is one packed sequence without padding, and the tokens that all its dialogues begin with, such
  as the system prompt, stand in it once (`attune.training.common.packing`).

The loss is that of transformers: the mean over the tokens of the loss mask in the effective batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attune.compute.process import autocast
from attune.cpu.optimize import optimize_for_cpu, optimize_packing_for_cpu
from attune.models.loading import compile_layers
from attune.training.common.collate import IGNORED, by_length
from attune.training.common.distributed_batches import shared_loader
from attune.training.common.packed_forward import accept_packed_batches, unsupported_reason, unwrap_peft
from attune.training.common.packing import Document, pack

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import Trainer

    from attune.config.schema import Hardware


def supervised_trainer(model: Any, hardware: Hardware, **arguments: Any) -> Trainer:
    """A trainer of `model` on examples with `input_ids` and `labels`.

    A model that is not packed (`packs`) and has no position-wise head (`has_positionwise_head`) is trained by its plain
    forward pass, with a warning.

    Args:
        model: a causal language model or a PeftModel, on `compute.device`.
        hardware: device and precision.
        arguments: of transformers' `Trainer`; the collator is `pad_supervised`.
    """
    from transformers import Trainer

    optimize_for_cpu(model, hardware)
    if packs(model, hardware):
        return packed_trainer(model, hardware, **arguments)
    compile_layers(model, hardware)
    if has_positionwise_head(model, hardware):
        return padded_trainer(model, **arguments)
    warnings.warn(
        f"{type(model).__name__} has no position-wise head: logits are computed at all positions. Training is "
        "correct, but slower",
        stacklevel=2,
    )
    return Trainer(model=model, **arguments)


def packed_trainer(model: Any, hardware: Hardware, **arguments: Any) -> Trainer:
    """As `supervised_trainer`, of a model for which `packs` is true."""
    share = not drops(model)

    class PackedTrainer(by_length_trainer()):  # type: ignore[misc]
        """Trainer on micro-batches of one packed sequence."""

        def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            batch = pack_supervised(inputs, share) | {"labels": inputs["labels"]}
            return super().compute_loss(model, batch, *args, **kwargs)

    optimize_packing_for_cpu(unwrap_peft(model), hardware)
    accept_packed_batches(unwrap_peft(model))
    return PackedTrainer(model=model, compute_loss_func=packed_loss, **arguments)


def padded_trainer(model: Any, **arguments: Any) -> Trainer:
    """As `supervised_trainer`, of a model with a position-wise head."""
    head = model.get_output_embeddings()

    class PaddedTrainer(by_length_trainer()):  # type: ignore[misc]
        """Trainer on padded micro-batches, with logits at the loss positions only."""

        def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            with logits_only_at(head, loss_positions(inputs["labels"])):
                return super().compute_loss(model, inputs, *args, **kwargs)

    return PaddedTrainer(model=model, compute_loss_func=token_loss, **arguments)


def by_length_trainer() -> type[Trainer]:
    """The class of a Trainer with micro-batches by length, on one rank or several."""
    from transformers import Trainer

    class ByLengthTrainer(Trainer):
        """Trainer whose effective batches are cut into micro-batches of similar length."""

        def get_train_dataloader(self) -> Any:
            if self.args.world_size == 1:
                return super().get_train_dataloader()
            return shared_loader(self, {"input_ids": [0, 0], "labels": [IGNORED, IGNORED]})

        def get_batch_samples(self, *args: Any) -> Any:
            batches, items = super().get_batch_samples(*args)
            return by_length(batches), items

    return ByLengthTrainer


def packs(model: Any, hardware: Hardware) -> bool:
    """Whether SFT of `model`, a causal language model or a PeftModel, runs on packed sequences.

    On a CPU, if packing supports the architecture (`unsupported_reason`) and nothing drops attention weights, which
    attention per document would not do.
    """
    config = unwrap_peft(model).config
    dropped = max(getattr(config, name, 0.0) or 0.0 for name in ("attention_dropout", "attention_probs_dropout_prob"))
    on_cpu = hardware.device == "cpu" and not hardware.compile
    return on_cpu and not dropped and unsupported_reason(model) is None


def drops(model: Any) -> bool:
    """Whether any layer of `model` drops states: dialogues that share a beginning would share what is dropped."""
    return any(getattr(module, "p", 0.0) for module in model.modules() if type(module).__name__.endswith("Dropout"))


def pack_supervised(batch: Mapping[str, torch.Tensor], share: bool) -> dict[str, torch.Tensor]:
    """A packed batch with a document for each dialogue, whose reply begins at its first token in the loss mask.

    Args:
        batch: of `pad_supervised`, B dialogues of at least two tokens.
        share: whether what all dialogues begin with stands in the sequence once.

    Returns:
        The tensors of `pack`, for a model that `uses_varlen`. `targets` is `IGNORED` outside of the loss mask too. A
        batch without a token in the loss mask, which fills up an effective batch on several ranks, has one target.
    """
    from torch.nn.utils.rnn import pad_sequence

    documents, learned = [], []
    for row, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        # Of the tokens that are predicted, from the second on.
        in_loss = labels[1:length] != IGNORED
        first = int(in_loss.float().argmax())
        ids = row[:length].tolist()
        documents.append(Document(ids[: first + 1], [ids[first + 1 :]]))
        learned.append(in_loss[first:])
    packed = pack(documents, pad_id=0, varlen=True, share=share)
    kept = pad_sequence(learned, batch_first=True)
    kept[0, 0] |= not kept.any()
    return packed | {"targets": packed["targets"].masked_fill(~kept, IGNORED)}


def packed_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
    """As `token_loss`, from the log-probabilities of the targets of `pack_supervised`."""
    tokens = (labels[:, 1:] != IGNORED).sum()
    # A batch without a token in the loss mask has one target, and a gradient of 0.
    total = -outputs.log_probs.sum() * tokens.clamp(max=1)
    loss: torch.Tensor = total / (tokens.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
    return loss


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
