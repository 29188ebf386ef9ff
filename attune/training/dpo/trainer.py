"""Direct preference optimisation (Rafailov et al. 2023, equation 7) of an adapter, with TRL's trainer.

    L = -log sigmoid(beta * [(log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x))])

x is the context, y_w the chosen and y_l the rejected reply. The reference is the adapter that the first round starts
from, frozen; with policy and reference equal, every margin is 0 and the loss ln 2. Its log-probabilities come from a
file (`reference`), the policy's from pairs laid out in rows (`packed_dpo`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.data.dialogue import Turn
from attune.models.chat_template import Completion, encode_completion, fit_context
from attune.models.quantization import keep_adapter_fp32
from attune.training.common.trainer import assert_first_loss, common_arguments, stop_after_epoch
from attune.training.dpo.packed_forward import prepare, unsupported_reason
from attune.training.dpo.reference_logps import require_reference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from trl.trainer.dpo_trainer import DPOTrainer

    from attune.config.schema import Dpo, Hardware

# Policy and reference run the same arithmetic on the same weights, but in other company: a matrix product's order of
# summation may depend on the number of its rows. In fp32 that moves the last digits; in bf16 it turns over some
# roundings: the mean margin of 16 pairs at beta 0.1 was up to 1.1e-4 (15 M parameters), which moves the loss by half of
# that. A reference that is another model is off by whole nats.
LN2_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-3}


def encode_pair(
    tokenizer: Tokenizer, context: Sequence[Turn], chosen: str, rejected: str, max_length: int
) -> dict[str, list[int]]:
    """Token ids of a pair: `prompt_ids`, `chosen_ids`, `rejected_ids`, prompt and either reply within `max_length`.

    The context loses its oldest exchanges until the longer reply fits behind it; a reply never takes more than half the
    window, so that it is the reply that is cut where it is longer than that.
    """
    replies = [encode_completion(tokenizer, context, text).reply for text in (chosen, rejected)]
    room = max_length - min(max(map(len, replies)), max_length // 2)
    fitted = fit_context(tokenizer, context, room)
    with_chosen, with_rejected = (encode_completion(tokenizer, fitted, text) for text in (chosen, rejected))
    return {
        "prompt_ids": with_chosen.prompt,
        "chosen_ids": _cut(with_chosen, max_length),
        "rejected_ids": _cut(with_rejected, max_length),
    }


def _cut(completion: Completion, max_length: int) -> list[int]:
    return completion.reply[: max_length - len(completion.prompt)]


def make_trainer(
    policy: Any,
    tokenizer: Tokenizer,
    pairs: Sequence[Mapping[str, Any]],
    dpo: Dpo,
    hardware: Hardware,
    seed: int,
    folder: Path,
) -> DPOTrainer:
    """A trainer for one round.

    Args:
        policy: a PeftModel with the adapter that the first round starts from, trainable; a later round must begin with
            it too and take its own weights from the checkpoint that it resumes from.
        tokenizer: the base model's.
        pairs: of `with_reference`, or of `encode_pair` where `unsupported_reason(policy)` says why the pairs cannot be laid out
            in rows: stock TRL then pads them, and runs a copy of the adapter as the reference in every step. As many in
            every round.
        dpo: hyperparameters; `epochs` is the length of the schedule.
        hardware: device, precision, micro-batch.
        seed: of order and dropout.
        folder: for checkpoints.

    Raises:
        ModelError: the pairs do not carry the reference's log-probabilities.
    """
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig

    from attune.training.dpo.packed_trainer import trainer_classes

    stock, packed = trainer_classes()
    reason = unsupported_reason(policy)
    if reason is None:
        require_reference(pairs)
        prepare(policy, hardware, dpo.max_length)
    else:
        warnings.warn(f"DPO falls back to TRL's padded batches and live reference: {reason}", stacklevel=2)
    keep_adapter_fp32(policy)
    arguments = common_arguments(dpo, hardware, seed, folder)
    return (stock if reason else packed)(
        model=policy,
        args=DPOConfig(beta=dpo.beta, max_length=dpo.max_length, disable_dropout=True, **arguments),
        train_dataset=Dataset.from_list([dict(pair) for pair in pairs]),
        processing_class=tokenizer,
        callbacks=[stop_after_epoch(), assert_first_loss(math.log(2), LN2_TOLERANCE[hardware.dtype])],
    )
