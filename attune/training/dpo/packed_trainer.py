"""TRL's DPO trainer on packed pairs, with the reference's log-probabilities in the data set.

Only the batches (`packed_batches`) and the forward pass of TRL's trainer are replaced. Its losses, logging,
checkpoints and callbacks still work on log-probabilities (2 B, R), the B chosen replies first. A loss without a
reference is that of another trainer of TRL (`trl_losses.reference_free`).

Every pair has equal weight in an effective batch, however the batch is split over micro-batches and ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attune.cpu.optimize import uses_varlen
from attune.runtime.distributed import all_reduce_sum, world_size
from attune.training.common.distributed_batches import EffectiveBatch, shared_loader
from attune.training.common.packed_forward import accept_packed_batches, unwrap_peft
from attune.training.common.packing import PACKED_KEYS, REPLY_KEYS
from attune.training.dpo.packed_batches import DUMMY_PAIR, collate_pairs, kept, likelihood_tokens, rows_of
from attune.training.dpo.reference_logps import REFERENCE_KEYS
from attune.training.dpo.trl_losses import LIKELIHOOD, reference_free

if TYPE_CHECKING:
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

    from attune.config.schema import Dpo


@contextmanager
def mask_dummies(accelerator: Any, real: torch.Tensor) -> Iterator[None]:
    """Within the context `accelerator.gather` takes values of `kept` pairs, and gives those of the real ones.

    Args:
        accelerator: TRL 1.16 calls its `gather` on values of a rank's pairs, (B,), and on sums over its tokens.
        real: (B,) booleans, false for the dummy pairs of this rank.
    """
    if world_size() == 1:
        yield
        return
    gather = accelerator.gather
    is_real, rows = gather(real), kept(real)

    def gather_real(values: torch.Tensor) -> torch.Tensor:
        if values.ndim == 0:
            return gather(values * real.any())
        # Every rank must give equally many.
        return gather(values.new_zeros(len(real)).masked_scatter(rows, values))[is_real]

    accelerator.gather = gather_real
    try:
        yield
    finally:
        del accelerator.gather


def packed_trainer(dpo: Dpo) -> Callable[..., DPOTrainer]:
    """The trainer on packed batches for the loss of `dpo`, the hyperparameters; it takes TRL's arguments."""
    return functools.partial(packed_pairs_trainer() if dpo.has_reference else reference_free_trainer(), dpo)


@functools.cache
def encoded_pairs_trainer() -> type[DPOTrainer]:
    """TRL's trainer on encoded pairs, with its own padded batches."""
    from trl.trainer.dpo_trainer import DPOTrainer

    class EncodedPairsTrainer(DPOTrainer):
        """TRL's trainer on tokenised pairs, so that every stage tokenises in the same way."""

        # TRL 1.16 has no switch for this in DPOConfig (SFTConfig has dataset_kwargs["skip_prepare_dataset"]); the
        # override can be removed once it has.
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            outputs: list[Any] = []

            def recorded(**kwargs: Any) -> Any:
                outputs.append(model(**kwargs))
                return outputs[-1]

            loss = super()._compute_loss(recorded, inputs, return_outputs)
            if LIKELIHOOD in self.loss_types:
                mask = inputs["completion_mask"][:, 1:].bool()
                self._log_likelihood(outputs[0].log_probs[:, -mask.shape[1] :].chunk(2)[0], mask.chunk(2)[0])
            return loss

        def _log_likelihood(self, log_probs: torch.Tensor, mask: torch.Tensor) -> None:
            """Log the mean negative log-likelihood of the tokens under `mask` on all ranks; TRL does not."""
            sums = (log_probs.detach() * mask).sum(), mask.sum()
            total, tokens = (self.accelerator.gather(value).sum().item() for value in sums)
            self._log("nll_loss", -total / tokens * self._share_of_all(int(tokens)))

        def _share_of_all(self, tokens: int) -> float:
            return 1.0

        def _log(self, name: str, value: float) -> None:
            policy: Any = self.model
            self._metrics["train" if policy.training else "eval"][name].append(value)

    return EncodedPairsTrainer


@functools.cache
def packed_pairs_trainer() -> Any:
    """The trainer on packed batches, for a loss with a reference; it takes `dpo` before TRL's arguments."""

    class PackedPairsTrainer(encoded_pairs_trainer()):  # type: ignore[misc]
        """Packed batches, and the reference's log-probabilities from the columns of the data set."""

        def __init__(self, dpo: Dpo, **kwargs: Any) -> None:
            super().__init__(**kwargs, data_collator=_collator(dpo, **kwargs))
            # TRL copies the adapter of a PeftModel that comes without a reference model. It would never run, but would
            # take memory and be written with every checkpoint.
            policy: Any = self.model
            if "ref" in getattr(policy, "peft_config", {}):
                policy.delete_adapter("ref")
            # Has TRL read the columns, as `precompute_ref_log_probs` does, without computing them again.
            self.precompute_ref_logps = True
            accept_packed_batches(unwrap_peft(policy))
            self.dpo, self.batch = dpo, EffectiveBatch()

        def get_train_dataloader(self) -> Any:
            return super().get_train_dataloader() if world_size() == 1 else shared_loader(self, DUMMY_PAIR)

        def get_batch_samples(self, *args: Any) -> Any:
            batches, items = super().get_batch_samples(*args)
            real = [batch["real"] for batch in batches]
            tokens = sum(map(likelihood_tokens, batches, real)) if self.has_likelihood else 0
            self.batch.begin(real, tokens)
            return batches, items

        @property
        def has_likelihood(self) -> bool:
            """Whether a part of the loss is a mean over tokens, and not over pairs."""
            return bool(self.dpo.sft_weight) or self.dpo.losses == ["orpo"]

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            real = inputs["real"]
            if self.has_likelihood:
                examples = int(real.sum())
                self.share = self.batch.token_share(likelihood_tokens(inputs, real), examples)
                self.examples = all_reduce_sum(examples)
            with mask_dummies(self.accelerator, real):
                mean = super().compute_loss(model, inputs, *args, **kwargs)
            self.batch.record_metrics(real, self._metrics["train"])
            return self.batch.rescale_loss(mean, real)

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            rows = kept(inputs["real"])
            if self.has_likelihood:
                self.loss_weights[-1] = self.dpo.sft_weight * self.share

            def of_kept(**kwargs: Any) -> Any:
                kwargs.pop("real")
                output = model(**kwargs)
                # Indexing copies: not where nothing is left out.
                return output if rows.all() else type(output)(**{name: rows_of(rows, output[name]) for name in output})

            replies = {name: rows_of(rows, inputs[name]) for name in ("input_ids", "completion_mask")}
            reference = {name: inputs[name][rows] for name in REFERENCE_KEYS}
            return super()._compute_loss(of_kept, inputs | replies | reference, return_outputs)

        def _share_of_all(self, tokens: int) -> float:
            return self.batch.token_share(tokens, self.examples)

    return PackedPairsTrainer


def _collator(dpo: Dpo, args: Any, processing_class: Any, model: Any, **others: Any) -> Callable[..., Any]:
    """`collate_pairs` for the loss of `dpo` and TRL's arguments."""
    return functools.partial(
        collate_pairs,
        pad_id=processing_class.pad_token_id,
        max_length=args.max_length,
        varlen=uses_varlen(unwrap_peft(model)),
        reference=dpo.has_reference,
        contexts=dpo.losses == ["orpo"],
    )


@functools.cache
def reference_free_trainer() -> Any:
    """The same for a loss without a reference."""
    import torch

    class ReferenceFreeTrainer(packed_pairs_trainer()):  # type: ignore[misc]
        """Packed batches for a loss that has no reference, and is no loss of `DPOTrainer`; logs what TRL does."""

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            rows = kept(inputs["real"])
            output = model(**{name: inputs[name] for name in (*PACKED_KEYS, *REPLY_KEYS)})
            log_probs, mask = (rows_of(rows, values) for values in (output.log_probs, output.label_mask))
            sums, lengths = log_probs.sum(dim=1), mask.sum(dim=1)
            pairs = int(rows.sum())
            chosen, rejected = (sums[: 2 * pairs] / lengths[: 2 * pairs]).chunk(2)
            preference = reference_free(self.dpo, chosen, rejected)
            # All rows but the rejected replies: the contexts, too, if the batch has them.
            likely = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
            likely[pairs : 2 * pairs] = False
            weight = self.dpo.sft_weight or 1.0  # of orpo, whose own it is
            loss = preference.losses.mean()
            if self.has_likelihood:
                loss = loss - weight * self.share * sums[likely].sum() / lengths[likely].sum()
                self._log_likelihood(log_probs[likely], mask[likely])
            margins = preference.chosen_rewards - preference.rejected_rewards
            for name, value in {
                "rewards/chosen": preference.chosen_rewards,
                "rewards/rejected": preference.rejected_rewards,
                "rewards/margins": margins,
                "rewards/accuracies": (margins > 0).float(),
                "logps/chosen": chosen.detach(),
                "logps/rejected": rejected.detach(),
            }.items():
                self._log(name, self.accelerator.gather(value).mean().item())
            return loss

    return ReferenceFreeTrainer
