"""Log-probabilities of tokens on a CPU, where TRL's function makes some twenty passes over all logits.

The gradient of a token's log-probability in the hidden state does not hang on the loss: it is the target's row of the
head's weight less the mean of all rows under the model's probabilities. The forward pass takes it from logits that are
still in the cache; the backward pass is then one product a token, and no logits are kept or made again.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Logits at a time: few enough to stay in a core's cache, enough rows for a product to run at its rate.
LOGITS = 2**20


class HeldCast:
    """A weight in another dtype, cast again only when it is another one or has been written to."""

    def __init__(self) -> None:
        self.source: torch.Tensor | None = None
        self.version = 0
        self.cast: Any = None

    def __call__(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`weight` in `dtype`, without gradient."""
        if weight is not self.source or weight._version != self.version or self.cast.dtype != dtype:
            self.source, self.version, self.cast = weight, weight._version, weight.detach().to(dtype)
        return self.cast


@cache
def token_log_probs() -> Any:
    """The autograd function of `(states, weight, bias, targets, softcap)`.

    states (M, H), weight (V, H) in the dtype to multiply in and bias (V) or None, both without gradient, targets (M,);
    softcap is Gemma 2's bound of the logits or None. It returns, (M,) each, log-probability, entropy and mean of the
    logits in fp32, and whether the target is the likeliest token; the first alone has a gradient, in states.
    """
    import torch

    class TokenLogProbs(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: Any, weight: Any, bias: Any, targets: Any, softcap: float | None) -> Any:
            with torch.autocast(states.device.type, enabled=False):
                found, slopes = _by_chunk(
                    states.to(weight.dtype), weight, bias, targets, softcap, ctx.needs_input_grad[0]
                )
            ctx.dtype = states.dtype
            ctx.save_for_backward(slopes)
            ctx.mark_non_differentiable(*found[1:])
            return found

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Any, *others: Any) -> Any:
            (slopes,) = ctx.saved_tensors
            return (slopes * gradient[:, None]).to(ctx.dtype), None, None, None, None

    return TokenLogProbs


def _by_chunk(states: Any, weight: Any, bias: Any, targets: Any, softcap: float | None, slopes: bool) -> Any:
    """The four values of each token, and the gradients (M, H) of the first where `slopes`; None else."""
    import torch

    rows = max(1, LOGITS // len(weight))
    parts = [
        _chunk(some, weight, bias, chosen[:, None], softcap, slopes)
        for some, chosen in zip(states.split(rows), targets.split(rows), strict=True)
    ]
    log_probs, entropy, mean, top, gradients = zip(*parts, strict=True)
    found = tuple(torch.cat(one) for one in (log_probs, entropy, mean, top))
    return found, torch.cat(gradients) if slopes else None


def _chunk(states: Any, weight: Any, bias: Any, targets: Any, softcap: float | None, slope: bool) -> Any:
    logits = (states @ weight.T).float()
    if bias is not None:
        logits += bias
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    greatest, place = logits.max(-1, keepdim=True)
    weights = (logits - greatest).exp_()
    total = weights.sum(-1, keepdim=True)
    log_total = greatest + total.log()
    # As a product of matrices, which makes no tensor as large as the logits.
    entropy = log_total - (weights[:, None] @ logits[..., None])[..., 0] / total
    log_probs, top = logits.gather(-1, targets) - log_total, place == targets
    values = (log_probs, entropy, logits.mean(-1, keepdim=True), top)
    gradients = None
    if slope:
        away = weights.div_(total).neg_()
        away.scatter_add_(-1, targets, away.new_ones(targets.shape))
        if softcap is not None:
            away.mul_(logits.div_(softcap).square_().neg_().add_(1))
        gradients = away.to(weight.dtype) @ weight
    return *(one[:, 0] for one in values), gradients
