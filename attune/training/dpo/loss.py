"""The sigmoid loss of DPO and its gradient (Rafailov et al. 2023, section 4, equation 7), written out.

For a context x with a chosen reply y_w and a rejected reply y_l, the policy pi and the reference model ref:

    reward    r(x, y) = beta * [log pi(y|x) - log ref(y|x)]
    margin    m       = r(x, y_w) - r(x, y_l)
    loss      L       = -log sigmoid(m)
    gradient  grad L  = -beta * sigmoid(-m) * [grad log pi(y_w|x) - grad log pi(y_l|x)]

Loss and gradient of a batch are the means over its pairs.

The gradient raises the chosen and lowers the rejected reply, each pair with the weight sigmoid(-m): the probability
that the implicit rewards give to the wrong order. A pair with a large positive margin has almost no weight.

Training uses TRL's implementation of this loss. This file defines it, and tests check that both are equal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

INITIAL_LOSS = math.log(2)  # of a policy that equals the reference: every margin is 0, and -log sigmoid(0) = ln 2


class PairLoss(NamedTuple):
    """The loss of B pairs, a scalar in nats, and what is logged with it, (B,) each."""

    loss: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor
    margins: torch.Tensor
    accuracies: torch.Tensor  # true where the chosen reply has the higher reward


def sigmoid_loss(
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float,
) -> PairLoss:
    """Equation 7.

    Args:
        chosen_logps: (B,) log pi(y_w|x) in nats, summed over the tokens of the reply.
        rejected_logps: (B,) log pi(y_l|x).
        ref_chosen_logps: (B,) log ref(y_w|x).
        ref_rejected_logps: (B,) log ref(y_l|x).
        beta: how strongly the policy is held to the reference.
    """
    from torch.nn.functional import logsigmoid

    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    loss = -logsigmoid(margins).mean()
    return PairLoss(loss, chosen_rewards, rejected_rewards, margins, chosen_rewards > rejected_rewards)


def logp_gradients(margins: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the loss in log pi(y_w|x) and in log pi(y_l|x), (B,) each: opposite, and weighted by sigmoid(-m).

    Args:
        margins: (B,).
        beta: as in `sigmoid_loss`.
    """
    gradient = beta * (-margins).sigmoid() / len(margins)
    return -gradient, gradient
