"""TRL's DPO trainer on packed pairs, with the reference's log-probabilities in the data set.

Only the batches and the forward pass of TRL's trainer are replaced. Its loss, logging, checkpoints and callbacks still
work on log-probabilities (2 B, R), the B chosen replies first.

Every pair has equal weight in an effective batch, however the batch is split over micro-batches and ranks.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attune.compute.packed_mask import PADDING
from attune.cpu.optimize import uses_varlen
from attune.runtime.distributed import world_size
from attune.training.common.collate import IGNORED
from attune.training.common.distributed_batches import EffectiveBatch, shared_loader
from attune.training.dpo.loss import INITIAL_LOSS
from attune.training.dpo.packed_forward import pair_output, unwrap_peft
from attune.training.dpo.packing import PACKED_KEYS, REPLY_KEYS, Document, pack

if TYPE_CHECKING:
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

# Fills up the last batch of an epoch on several ranks. Its replies are equal: their gradients cancel, and its loss is
# always INITIAL_LOSS.
DUMMY_PAIR = {
    "prompt_ids": [0],
    "chosen_ids": [0],
    "rejected_ids": [0],
    "ref_chosen_logps": 0.0,
    "ref_rejected_logps": 0.0,
}


def collate_pairs(
    pairs: Sequence[Mapping[str, Any]], pad_id: int, max_length: int, varlen: bool
) -> dict[str, torch.Tensor]:
    """A packed batch of B pairs, with what TRL's loss reads.

    Args:
        pairs: of `with_reference`.
        pad_id: token id of the padding.
        max_length: tokens of context and reply together; a longer reply is cut at its end, as in TRL.
        varlen: of `pack`.

    Returns:
        The tensors of `pack`, with the replies in the order all chosen, all rejected. `input_ids` and
        `completion_mask`, (2 B, 1 + R): the replies, after one position in place of the context. `attention_mask`,
        (G, L): 1 for a token and 0 for padding; TRL counts the tokens. `ref_chosen_logps` and `ref_rejected_logps`,
        (B,), in nats. `real`, (B,) booleans: false for `DUMMY_PAIR`.

    Raises:
        ValueError: a context leaves no room for a reply within `max_length`.
    """
    import torch
    from torch.nn.functional import pad

    documents = []
    for pair in pairs:
        room = max(max_length - len(pair["prompt_ids"]), 0)
        documents.append(Document(pair["prompt_ids"], [pair["chosen_ids"][:room], pair["rejected_ids"][:room]]))
    batch = pack(documents, pad_id, varlen)
    # `pack` gives chosen, rejected, chosen, rejected, ...; TRL splits a batch into halves.
    for name in REPLY_KEYS:
        batch[name] = torch.cat([batch[name][0::2], batch[name][1::2]])
    in_reply = pad(batch["targets"] != IGNORED, (1, 0))
    return batch | {
        "input_ids": pad(batch["targets"], (1, 0), value=pad_id).masked_fill(~in_reply, pad_id),
        "completion_mask": in_reply.long(),
        "attention_mask": (batch["packed_documents"] != PADDING).long(),
        "ref_chosen_logps": torch.tensor([pair["ref_chosen_logps"] for pair in pairs]),
        "ref_rejected_logps": torch.tensor([pair["ref_rejected_logps"] for pair in pairs]),
        "real": torch.tensor([pair != DUMMY_PAIR for pair in pairs]),
    }


def accept_packed_batches(model: Any) -> None:
    """Have `model` return `pair_output` for a batch of `collate_pairs`, and what it returned before for other inputs.

    Args:
        model: a causal language model, not a PeftModel. If it `uses_varlen`, it takes packed batches only.
    """
    plain = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """`pair_output` of a packed batch, the model's own output of any other."""
        if "packed_ids" not in kwargs:
            return plain(*args, **kwargs)
        return pair_output(self, {name: kwargs[name] for name in (*PACKED_KEYS, *REPLY_KEYS)})

    model.forward = types.MethodType(forward, model)


@contextmanager
def mask_dummies(accelerator: Any, real: torch.Tensor) -> Iterator[None]:
    """Within the context `accelerator.gather` drops the values of dummy pairs, so that TRL's means are of real pairs.

    Args:
        accelerator: TRL 1.16 calls its `gather` on values of a rank's pairs, (B,).
        real: (B,) booleans, false for the dummy pairs of this rank.
    """
    if world_size() == 1:
        yield
        return
    gather = accelerator.gather
    is_real = gather(real)
    # Values of another shape are scalars: sums over a rank's tokens.
    accelerator.gather = lambda values: gather(values)[is_real] if values.shape == real.shape else gather(values)
    try:
        yield
    finally:
        del accelerator.gather


@functools.cache
def trainer_classes() -> tuple[type[DPOTrainer], type[DPOTrainer]]:
    """TRL's trainer on encoded pairs with its own padded batches, and TRL's trainer on packed batches."""
    from trl.trainer.dpo_trainer import DPOTrainer

    class EncodedPairsTrainer(DPOTrainer):
        """TRL's trainer on tokenised pairs, so that every stage tokenises in the same way."""

        # TRL 1.16 has no switch for this in DPOConfig (SFTConfig has dataset_kwargs["skip_prepare_dataset"]); the
        # override can be removed once it has.
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    class PackedPairsTrainer(EncodedPairsTrainer):
        """Packed batches, and the reference's log-probabilities from the columns of the data set."""

        def __init__(self, **kwargs: Any) -> None:
            args, tokenizer = kwargs["args"], kwargs["processing_class"]
            collator = functools.partial(
                collate_pairs,
                pad_id=tokenizer.pad_token_id,
                max_length=args.max_length,
                varlen=uses_varlen(unwrap_peft(kwargs["model"])),
            )
            super().__init__(**kwargs, data_collator=collator)
            # TRL copies the adapter of a PeftModel that comes without a reference model. It would never run, but would
            # take memory and be written with every checkpoint.
            policy: Any = self.model
            if "ref" in getattr(policy, "peft_config", {}):
                policy.delete_adapter("ref")
            # Has TRL read the columns, as `precompute_ref_log_probs` does, without computing them again.
            self.precompute_ref_logps = True
            accept_packed_batches(unwrap_peft(policy))
            self.batch = EffectiveBatch()

        def get_train_dataloader(self) -> Any:
            return super().get_train_dataloader() if world_size() == 1 else shared_loader(self, DUMMY_PAIR)

        def get_batch_samples(self, *args: Any) -> Any:
            batches, items = super().get_batch_samples(*args)
            self.batch.begin([batch["real"] for batch in batches])
            return batches, items

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            real = inputs.pop("real")
            with mask_dummies(self.accelerator, real):
                mean = super().compute_loss(model, inputs, *args, **kwargs)
            self.batch.record_metrics(real, self._metrics["train"])
            return self.batch.rescale_loss(mean, real, INITIAL_LOSS)

    return EncodedPairsTrainer, PackedPairsTrainer
