"""Every loss of `dpo.loss` by TRL's code: what TRL's trainers are told, and the value that the first step must have.

`DPOTrainer` computes all losses but two from the log-probabilities of a batch. simpo and orpo have no reference model;
they are methods of `CPOTrainer` and `ORPOTrainer`, and are called here without these trainers, on the log-probabilities
of packed batches. `loss` writes out the default.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from attune.config.sections.preference_losses import SORTING
from attune.runtime.distributed import world_size
from attune.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

    from attune.config.schema import Dpo

# TRL's name of the mean negative log-likelihood of the chosen tokens.
LIKELIHOOD = "sft"


def config_arguments(dpo: Dpo) -> dict[str, Any]:
    """Keyword arguments of `DPOConfig` on the loss; of a loss without a reference only `beta`."""
    if not dpo.has_reference:
        return {"beta": dpo.beta}
    weights = list(dpo.loss_weights or [1.0] * len(dpo.losses))
    with_likelihood = [(LIKELIHOOD, dpo.sft_weight)] if dpo.sft_weight else []
    named = [*zip(dpo.losses, weights, strict=True), *with_likelihood]
    return {
        "beta": dpo.beta,
        "loss_type": [name for name, _ in named],
        "loss_weights": [weight for _, weight in named],
        "label_smoothing": dpo.of_loss("label_smoothing"),
        "ld_alpha": dpo.ld_alpha,
        "f_divergence_type": dpo.f_divergence,
        "f_alpha_divergence_coef": dpo.of_loss("f_alpha"),
        **({"discopop_tau": dpo.of_loss("discopop_tau")} if "discopop" in dpo.losses else {}),
    }


def require_whole_batch(dpo: Dpo, micro_batches: int) -> None:
    """Check that a loss that sorts the pairs of a batch sees the effective batch at once.

    Args:
        dpo: hyperparameters.
        micro_batches: of an effective batch, on each rank.

    Raises:
        UserError: it does not; after running out of memory, for example.
    """
    sorting = [loss for loss in dpo.losses if loss in SORTING]
    if sorting and micro_batches * world_size() > 1:
        raise UserError(
            f"dpo.loss = {sorting[0]} sorts the {dpo.batch_size} pairs of a batch, which do not fit into one "
            "micro-batch of one process here: lower dpo.batch_size"
        )


class Preference(NamedTuple):
    """A loss without a reference: of each pair, (B,), and the rewards of its replies, (B,) each, without gradient."""

    losses: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor


def reference_free(dpo: Dpo, chosen_logps: torch.Tensor, rejected_logps: torch.Tensor) -> Preference:
    """SimPO (arXiv:2405.14734) or the odds ratio part of ORPO (arXiv:2403.07691, equation 7, times lambda).

    Args:
        dpo: hyperparameters; its loss is simpo or orpo.
        chosen_logps: (B,) log pi(y_w|x) in nats, the mean over the tokens of the reply.
        rejected_logps: (B,) log pi(y_l|x), likewise.
    """
    trainer: Any = SimpleNamespace(beta=dpo.beta, accelerator=SimpleNamespace(device=chosen_logps.device))
    if dpo.losses == ["orpo"]:
        from trl.experimental.orpo import ORPOTrainer

        odds_ratio_loss: Any = ORPOTrainer.odds_ratio_loss
        # TRL subtracts the mean of what it returns.
        gains, chosen, rejected, _, _ = odds_ratio_loss(trainer, chosen_logps, rejected_logps)
        return Preference(-gains, chosen, rejected)
    from trl.experimental.cpo import CPOTrainer

    trainer.loss_type, trainer.alpha = "simpo", 0.0
    trainer.simpo_gamma, trainer.label_smoothing = dpo.of_loss("simpo_gamma"), dpo.of_loss("label_smoothing")
    cpo_loss: Any = CPOTrainer.cpo_loss
    return Preference(*cpo_loss(trainer, chosen_logps, rejected_logps))


def at_zero_margin(trainer: Any) -> tuple[float, float]:
    """The loss, without its likelihood part, of a pair whose two log-ratios to the reference are 0, and its slope.

    Args:
        trainer: of TRL; not changed.

    Returns:
        The loss, and the mean of its absolute derivatives in the log-probabilities of the two replies, in 1/nat.
    """
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.utils import FusedCausalLMOutput

    parts = [
        (name, weight)
        for name, weight in zip(trainer.loss_types, trainer.loss_weights, strict=True)
        if name != LIKELIHOOD
    ]
    probe = copy.copy(trainer)
    probe.loss_types, probe.loss_weights = zip(*parts, strict=True)
    # TRL logs into these, and a reference that it must not compute here.
    probe._metrics, probe.precompute_ref_logps = defaultdict(lambda: defaultdict(list)), True
    device = trainer.accelerator.device
    log_probs = torch.zeros(2, 1, device=device, requires_grad=True)
    nothing = torch.zeros(2, 1, device=device)
    output = FusedCausalLMOutput(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    ids = torch.ones(2, 2, dtype=torch.long, device=device)
    zero = torch.zeros(1, device=device)
    batch = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": torch.tensor([[0, 1]] * 2, device=device),
        "ref_chosen_logps": zero,
        "ref_rejected_logps": zero,
    }
    loss: Any = DPOTrainer._compute_loss(probe, lambda **_: output, batch, False)
    (slopes,) = torch.autograd.grad(loss, log_probs)
    return loss.item(), slopes.abs().mean().item()
