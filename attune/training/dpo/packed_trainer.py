"""TRL's DPO trainer on packed pairs, with the reference's log-probabilities in the data set.

Only the batches and the forward pass of TRL's trainer are replaced. Its losses, logging, checkpoints and callbacks
still work on log-probabilities (2 B, R), the B chosen replies first. A loss without a reference is that of another
trainer of TRL (`trl_losses.reference_free`).

Every pair has equal weight in an effective batch, however the batch is split over micro-batches and ranks.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attune.compute.packed_mask import CONTEXT, PADDING
from attune.cpu.optimize import uses_varlen
from attune.runtime.distributed import all_reduce_sum, world_size
from attune.training.common.collate import IGNORED
from attune.training.common.distributed_batches import EffectiveBatch, shared_loader
from attune.training.dpo.packed_forward import pair_output, unwrap_peft
from attune.training.dpo.packing import PACKED_KEYS, REPLY_KEYS, Document, pack
from attune.training.dpo.reference_logps import REFERENCE_KEYS
from attune.training.dpo.trl_losses import LIKELIHOOD, reference_free

if TYPE_CHECKING:
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

    from attune.config.schema import Dpo

# Fills up the last batch of an epoch on several ranks; no loss and no logged value contains it.
DUMMY_PAIR = {
    "prompt_ids": [0],
    "chosen_ids": [0],
    "rejected_ids": [0],
}


def collate_pairs(
    pairs: Sequence[Mapping[str, Any]],
    pad_id: int,
    max_length: int,
    varlen: bool,
    reference: bool = True,
    contexts: bool = False,
) -> dict[str, torch.Tensor]:
    """A packed batch of B pairs, with what TRL's loss reads.

    Args:
        pairs: of `with_reference`, or of `encode_pair` without a reference.
        pad_id: token id of the padding.
        max_length: tokens of context and reply together; a longer reply is cut at its end, as in TRL.
        varlen: of `pack`.
        reference: whether the loss reads the reference's log-probabilities.
        contexts: whether it reads the log-probabilities of the contexts: `predictors` and `targets` then have B more
            rows, the tokens of each context from its second on.

    Returns:
        The tensors of `pack`, with the replies in the order all chosen, all rejected. `input_ids` and
        `completion_mask`, (2 B, 1 + R): the replies, after one position in place of the context. `attention_mask`,
        (G, L): 1 for a token and 0 for padding; TRL counts the tokens. With a reference `ref_chosen_logps` and
        `ref_rejected_logps`, (B,), in nats. `real`, (B,) booleans: false for `DUMMY_PAIR`.

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
    replies = {
        "input_ids": pad(batch["targets"], (1, 0), value=pad_id).masked_fill(~in_reply, pad_id),
        "completion_mask": in_reply.long(),
        "attention_mask": (batch["packed_documents"] != PADDING).long(),
        "real": torch.tensor([pair != DUMMY_PAIR for pair in pairs]),
    }
    if contexts:
        batch |= _with_contexts(batch, pairs)
    if reference:
        for name in REFERENCE_KEYS:
            replies[name] = torch.tensor([pair.get(name, 0.0) for pair in pairs])
    return batch | replies


def _with_contexts(batch: Mapping[str, torch.Tensor], pairs: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """`predictors` and `targets` of a packed batch with the rows of the contexts after those of the replies."""
    import torch
    from torch.nn.functional import pad
    from torch.nn.utils.rnn import pad_sequence

    in_context = (batch["packed_segments"] == CONTEXT).flatten()
    documents, tokens = batch["packed_documents"].flatten(), batch["packed_ids"].flatten()
    indices = [(in_context & (documents == number)).nonzero()[:, 0] for number in range(len(pairs))]
    rows = {
        "predictors": pad_sequence([places[:-1] for places in indices], batch_first=True),
        "targets": pad_sequence([tokens[places[1:]] for places in indices], batch_first=True, padding_value=IGNORED),
    }
    longest = max(rows["targets"].shape[1], batch["targets"].shape[1])
    fillers = {"predictors": 0, "targets": IGNORED}
    return {
        name: torch.cat([pad(part, (0, longest - part.shape[1]), value=fillers[name]) for part in (batch[name], more)])
        for name, more in rows.items()
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


def kept(real: torch.Tensor) -> torch.Tensor:
    """The pairs that the loss is computed of, (B,) booleans: the real ones.

    All of a micro-batch of dummies alone, whose loss `EffectiveBatch` multiplies by 0: every rank needs a gradient.
    """
    return real if bool(real.any()) else ~real


def likelihood_tokens(batch: Mapping[str, torch.Tensor], real: torch.Tensor) -> int:
    """The number of tokens of the chosen replies, and of the contexts if `targets` has them, of the real pairs."""
    rows = batch["targets"].unflatten(0, (-1, len(real)))
    return int((rows[[0, *range(2, len(rows))]] != IGNORED)[:, real].sum())


@functools.cache
def trainer_classes() -> tuple[type[DPOTrainer], Callable[..., DPOTrainer], Callable[..., DPOTrainer]]:
    """TRL's trainer on encoded pairs with its own padded batches, on packed batches, and that without a reference.

    The last two take `dpo`, the hyperparameters.
    """
    import torch
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

    class PackedPairsTrainer(EncodedPairsTrainer):
        """Packed batches, and the reference's log-probabilities from the columns of the data set."""

        def __init__(self, dpo: Dpo, **kwargs: Any) -> None:
            args, tokenizer = kwargs["args"], kwargs["processing_class"]
            collator = functools.partial(
                collate_pairs,
                pad_id=tokenizer.pad_token_id,
                max_length=args.max_length,
                varlen=uses_varlen(unwrap_peft(kwargs["model"])),
                reference=dpo.has_reference,
                contexts=dpo.losses == ["orpo"],
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
                return output if rows.all() else type(output)(**{name: _of(rows, output[name]) for name in output})

            replies = {name: _of(rows, inputs[name]) for name in ("input_ids", "completion_mask")}
            reference = {name: inputs[name][rows] for name in REFERENCE_KEYS}
            return super()._compute_loss(of_kept, inputs | replies | reference, return_outputs)

        def _share_of_all(self, tokens: int) -> float:
            return self.batch.token_share(tokens, self.examples)

    class ReferenceFreeTrainer(PackedPairsTrainer):
        """Packed batches for a loss that has no reference, and is no loss of `DPOTrainer`; logs what TRL does."""

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            rows = kept(inputs["real"])
            output = model(**{name: inputs[name] for name in (*PACKED_KEYS, *REPLY_KEYS)})
            log_probs, mask = (_of(rows, values) for values in (output.log_probs, output.label_mask))
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

    return EncodedPairsTrainer, PackedPairsTrainer, ReferenceFreeTrainer


def _of(pairs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The rows (N, …) of these pairs, (B,) booleans: of the chosen replies, the rejected ones, and perhaps contexts."""
    return rows[pairs.repeat(len(rows) // len(pairs))]
