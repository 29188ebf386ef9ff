"""The trainer of one round of DPO: TRL's losses (`trl_losses`) on packed pairs (`packed_trainer`) of a LoRA policy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.models.quantization import keep_adapter_fp32
from attune.runtime.errors import ModelError
from attune.training.common.packed_forward import prepare, unsupported_reason
from attune.training.common.trainer import assert_first_loss, common_arguments, stop_after_epoch
from attune.training.dpo.reference_logps import require_reference
from attune.training.dpo.trl_losses import at_zero_margin, config_arguments, require_whole_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from trl.trainer.dpo_trainer import DPOTrainer

    from attune.config.schema import Dpo, Hardware

# How far the mean margin of the first step, in nats before beta, may be from 0. Policy and reference do the same
# arithmetic with the same weights but in batches of different shapes, and the order of summation in a matrix product
# may depend on the shape. In fp32 that changes the last digits, in bf16 some roundings: 16 pairs of SmolLM2 (135 M)
# were off by 0.022 nats. A wrong reference is off by whole nats. The loss changes by its slope times the margin:
# that of a small margin m of DPO is ln 2 - beta m / 2.
MARGIN_TOLERANCE = {"fp32": 2e-3, "bf16": 0.2}


def make_trainer(
    policy: Any,
    tokenizer: Tokenizer,
    pairs: Sequence[Mapping[str, Any]],
    dpo: Dpo,
    hardware: Hardware,
    seed: int,
    folder: Path,
) -> DPOTrainer:
    """A trainer for one round, which stops after one epoch.

    Where `unsupported_reason(policy)` is not None, stock TRL trains on padded batches, with a copy of the adapter as
    the reference that runs in every step, and a warning names the reason.

    Args:
        policy: a PeftModel with the trainable adapter that the first round starts from. A later round begins with it
            too, and loads its weights from the checkpoint that it resumes from.
        tokenizer: the base model's.
        pairs: of `with_reference`, or of `encode_pair` where stock TRL trains.
        dpo: hyperparameters; `epochs` is the length of the learning-rate schedule.
        hardware: device, precision, micro-batch.
        seed: of the order of the pairs.
        folder: for checkpoints.

    Raises:
        ModelError: the pairs lack the reference's log-probabilities, or the loss has no reference and TRL's batches
            would have to be padded.
        UserError: of `require_whole_batch`.
    """
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig

    kind = _trainer_kind(policy, pairs, dpo, hardware)
    keep_adapter_fp32(policy)
    arguments = common_arguments(dpo, hardware, seed, folder)
    require_whole_batch(dpo, arguments["gradient_accumulation_steps"])
    trainer = kind(
        model=policy,
        # Dropout would only add noise to the margin between policy and reference.
        args=DPOConfig(max_length=dpo.max_length, disable_dropout=True, **config_arguments(dpo), **arguments),
        train_dataset=Dataset.from_list([dict(pair) for pair in pairs]),
        processing_class=tokenizer,
        callbacks=[stop_after_epoch()],
    )
    if dpo.has_reference:
        value, slope = at_zero_margin(trainer)
        tolerance = slope * MARGIN_TOLERANCE[hardware.precision]
        trainer.add_callback(assert_first_loss(value, tolerance, dpo.sft_weight))
    return trainer


def _trainer_kind(
    policy: Any, pairs: Sequence[Mapping[str, Any]], dpo: Dpo, hardware: Hardware
) -> Callable[..., DPOTrainer]:
    """The trainer on packed batches, with the policy prepared for them; TRL's own where it cannot take them.

    Raises:
        ModelError: as `make_trainer`.
    """
    from attune.training.dpo.packed_trainer import encoded_pairs_trainer, packed_trainer

    reason = unsupported_reason(policy)
    if reason is None:
        if dpo.has_reference:
            require_reference(pairs)
        prepare(policy, hardware, dpo.max_length)
        return packed_trainer(dpo)
    if not dpo.has_reference:
        raise ModelError(
            f"dpo.loss = {dpo.losses[0]} is computed from packed batches alone, and {reason}: take another"
        )
    # The line of the caller of `make_trainer`.
    warnings.warn(f"DPO falls back to TRL's padded batches and live reference: {reason}", stacklevel=3)
    return encoded_pairs_trainer()
