"""TRL's DPO trainer on pairs that are laid out in rows, with the reference's log-probabilities in the data.

Of TRL's trainer only the batches and the forward pass are replaced: its losses, logging, checkpoints and callbacks work
on the same tensors of log-probabilities, (2 B, R), the chosen replies first.

Each pair of an effective batch weighs the same, in how many micro-batches and on how many ranks it is dealt out.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attune.runtime.distributed import world_size
from attune.training.common.collate import IGNORED
from attune.training.common.distributed_batches import EffectiveBatch, shared_loader
from attune.training.dpo.packed_forward import bare, pair_output, uses_varlen
from attune.training.dpo.packing import PADDING, Block, pack

if TYPE_CHECKING:
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

# A pair of which nothing is learned: of two equal replies the gradients cancel.
DUMMY_PAIR = {
    "prompt_ids": [0],
    "chosen_ids": [0],
    "rejected_ids": [0],
    "ref_chosen_logps": 0.0,
    "ref_rejected_logps": 0.0,
}
DUMMY_LOSS = math.log(2)
LAYOUT = ("row_ids", "row_positions", "row_blocks", "row_parts", "predictors", "targets")


def collate_pairs(
    pairs: Sequence[Mapping[str, Any]], pad_id: int, max_length: int, one_row: bool
) -> dict[str, torch.Tensor]:
    """A batch of B pairs in rows, with what TRL's loss reads beside it.

    Args:
        pairs: of `with_reference`.
        pad_id: fills rows.
        max_length: of context and reply together; a longer reply is cut at its end, as TRL does.
        one_row: of `pack`.

    Returns:
        The tensors of `pack`, replies in the order all chosen, all rejected. `input_ids` and `completion_mask`,
        (2 B, 1 + R), are the replies behind one place for the context. `attention_mask` (G, L) is 1 where a row holds a
        token, for TRL to count. `ref_chosen_logps` and `ref_rejected_logps`, (B,), in nats. `real`, (B,) booleans, is
        false for `DUMMY_PAIR`.

    Raises:
        ValueError: a context leaves no room for a reply within `max_length`.
    """
    import torch

    blocks = []
    for pair in pairs:
        room = max(max_length - len(pair["prompt_ids"]), 0)
        blocks.append(Block(pair["prompt_ids"], [pair["chosen_ids"][:room], pair["rejected_ids"][:room]]))
    batch = pack(blocks, pad_id, one_row)
    # Blocks give chosen, rejected, chosen, rejected …; TRL halves a batch into chosen and rejected.
    for name in ("predictors", "targets"):
        batch[name] = torch.cat([batch[name][0::2], batch[name][1::2]])
    replied = torch.nn.functional.pad(batch["targets"] != IGNORED, (1, 0))
    return batch | {
        "input_ids": torch.nn.functional.pad(batch["targets"], (1, 0), value=pad_id).masked_fill(~replied, pad_id),
        "completion_mask": replied.long(),
        "attention_mask": (batch["row_blocks"] != PADDING).long(),
        "ref_chosen_logps": torch.tensor([pair["ref_chosen_logps"] for pair in pairs]),
        "ref_rejected_logps": torch.tensor([pair["ref_rejected_logps"] for pair in pairs]),
        "real": torch.tensor([pair != DUMMY_PAIR for pair in pairs]),
    }


def read_rows(model: Any) -> None:
    """Have `model`, a bare causal language model, answer a batch of `collate_pairs` with what TRL's loss reads.

    Without rows it answers as before; not with attention `PER_BLOCK`, which knows rows alone.
    """
    plain = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "row_ids" not in kwargs:
            return plain(*args, **kwargs)
        return pair_output(self, {name: kwargs[name] for name in LAYOUT})

    model.forward = types.MethodType(forward, model)


@contextmanager
def mask_dummies(accelerator: Any, real: torch.Tensor) -> Iterator[None]:
    """Within the block `accelerator.gather` leaves fillers out, so that TRL's means are of pairs that are none.

    Args:
        accelerator: whose `gather` TRL 1.16 calls for values of a rank's pairs, (B,).
        real: of this rank's pairs, (B,) booleans.
    """
    if world_size() == 1:
        yield
        return
    gather = accelerator.gather
    kept = gather(real)
    # Sums over a rank's tokens are single numbers.
    accelerator.gather = lambda values: gather(values)[kept] if values.shape == real.shape else gather(values)
    try:
        yield
    finally:
        del accelerator.gather


@functools.cache
def trainer_classes() -> tuple[type[DPOTrainer], type[DPOTrainer]]:
    """TRL's trainer for pairs that are token ids already, and the one of them that lays out pairs in rows."""
    from trl.trainer.dpo_trainer import DPOTrainer

    class EncodedPairsTrainer(DPOTrainer):
        """TRL's trainer on pairs that are token ids already, so that every stage tokenises in one way."""

        # TRL 1.16 has no switch for this in DPOConfig (SFTConfig has dataset_kwargs["skip_prepare_dataset"]); the
        # override goes once it has.
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    class PackedPairsTrainer(EncodedPairsTrainer):
        """Pairs in rows, and the reference's log-probabilities from the columns of the data set."""

        def __init__(self, **kwargs: Any) -> None:
            args, tokenizer = kwargs["args"], kwargs["processing_class"]
            collator = functools.partial(
                collate_pairs,
                pad_id=tokenizer.pad_token_id,
                max_length=args.max_length,
                one_row=uses_varlen(bare(kwargs["model"])),
            )
            super().__init__(**kwargs, data_collator=collator)
            # TRL copies the adapter of any PeftModel that comes without a reference model. With the columns it is never
            # run, but would be kept in memory and written with every checkpoint.
            policy: Any = self.model
            if "ref" in getattr(policy, "peft_config", {}):
                policy.delete_adapter("ref")
            # What `precompute_ref_log_probs` sets, without the pass over the data that comes with it.
            self.precompute_ref_logps = True
            read_rows(bare(policy))
            self.batch = EffectiveBatch()

        def get_train_dataloader(self) -> Any:
            return super().get_train_dataloader() if world_size() == 1 else shared_loader(self, DUMMY_PAIR)

        def get_batch_samples(self, *args: Any) -> Any:
            batches, items = super().get_batch_samples(*args)
            self.batch.begin([one["real"] for one in batches])
            return batches, items

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            real = inputs.pop("real")
            with mask_dummies(self.accelerator, real):
                mean = super().compute_loss(model, inputs, *args, **kwargs)
            self.batch.record_metrics(real, self._metrics["train"])
            return self.batch.rescale_loss(mean, real, DUMMY_LOSS)

    return EncodedPairsTrainer, PackedPairsTrainer
