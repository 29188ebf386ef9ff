"""Log-probabilities of target tokens, whose gradient is taken in the forward pass while the logits are in the cache.

For the hidden state h (H,) of one token, the head's weight W (V, H) and bias b, the target t, and optionally Gemma 2's
softcap c:

    z = W h + b                     with a softcap  z = c tanh((W h + b) / c)
    log p(t) = z_t - logsumexp(z)
    entropy  = logsumexp(z) - sum_v p_v z_v,    p = softmax(z)
    d log p(t) / dh = W_t - sum_v p_v W_v = (e_t - p) W
                                    with a softcap  ((e_t - p) * (1 - (z / c)^2)) W

The gradient of log p(t) in h is independent of the loss, so the forward pass can compute it and the backward pass only
multiplies it by the loss's gradient in log p(t). No logits are kept or computed again. TRL's function for a GPU, run as
plain torch operations on a CPU, makes some twenty passes over all logits.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from attune.cpu.casts import CachedCast

if TYPE_CHECKING:
    import torch

# Each chunk reads the whole head, which is larger than a cache: with fewer tokens the reading takes longer than the
# products, and with more the logits leave the cache before they are used (docs/performance.md).
CHUNK_TOKENS, CHUNK_LOGITS = 256, 2**24


def chunk_tokens(words: int) -> int:
    """The tokens whose logits are computed at once, for a vocabulary of `words`."""
    return max(1, min(CHUNK_TOKENS, CHUNK_LOGITS // words))


def cpu_token_log_probs(
    states: torch.Tensor, head: Any, targets: torch.Tensor, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The values of `token_log_probs`, or None where the states are not on a CPU or the head is trained.

    Args:
        states: (M, H) hidden states.
        head: the linear layer onto the vocabulary.
        targets: (M,) token ids.
        softcap: the bound c of the logits.
    """
    import torch

    if states.device.type != "cpu" or head.weight.requires_grad:
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
    # The cache is stored in the head, so that it is freed with the model.
    weight = head.__dict__.setdefault("cached_cast", CachedCast())(head.weight, dtype)
    return token_log_probs().apply(states, weight, head.bias, targets, softcap)


@cache
def token_log_probs() -> Any:
    """The autograd function of `(states, weight, bias, targets, softcap)`.

    states is (M, H), weight (V, H) in the dtype to multiply in, bias (V,) or None; weight and bias have no gradient.
    It returns, (M,) each, the log-probability and the entropy in nats, the mean logit, all in fp32, and whether the
    target is the most likely token. Only the log-probability has a gradient, in states.
    """
    import torch

    class TokenLogProbs(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: Any, weight: Any, bias: Any, targets: Any, softcap: float | None) -> Any:
            """The four values, (M,) each; saves the gradients of the log-probabilities."""
            with torch.autocast(states.device.type, enabled=False):
                values, gradients = _in_chunks(
                    states.to(weight.dtype), weight, bias, targets, softcap, ctx.needs_input_grad[0]
                )
            ctx.dtype = states.dtype
            ctx.save_for_backward(gradients)
            ctx.mark_non_differentiable(*values[1:])
            return values

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, d_log_probs: Any, *others: Any) -> Any:
            """The saved gradients (M, H), each row times the gradient of the loss in its log-probability."""
            (gradients,) = ctx.saved_tensors
            return (gradients * d_log_probs[:, None]).to(ctx.dtype), None, None, None, None

    return TokenLogProbs


def _in_chunks(states: Any, weight: Any, bias: Any, targets: Any, softcap: float | None, with_gradient: bool) -> Any:
    """The four values, (M,) each, and the gradients (M, H) of the log-probabilities, or None."""
    import torch

    tokens = chunk_tokens(len(weight))
    chunks = [
        _chunk(chunk_states, weight, bias, chunk_targets[:, None], softcap, with_gradient)
        for chunk_states, chunk_targets in zip(states.split(tokens), targets.split(tokens), strict=True)
    ]
    log_probs, entropy, mean, top, gradients = zip(*chunks, strict=True)
    values = tuple(torch.cat(parts) for parts in (log_probs, entropy, mean, top))
    return values, torch.cat(gradients) if with_gradient else None


def _chunk(states: Any, weight: Any, bias: Any, targets: Any, softcap: float | None, with_gradient: bool) -> Any:
    """As `_in_chunks`, of m tokens at once: states (m, H), targets (m, 1)."""
    logits = (states @ weight.T).float()  # z, (m, V)
    if bias is not None:
        logits += bias
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    greatest, argmax = logits.max(-1, keepdim=True)
    # softmax with the greatest logit subtracted: exp cannot overflow.
    exps = (logits - greatest).exp_()
    total = exps.sum(-1, keepdim=True)
    logsumexp = greatest + total.log()
    # sum_v p_v z_v by torch's pairwise sum: a product of matrices adds one term after another, which is wrong by a
    # thousandth at a vocabulary of 49,152.
    entropy = logsumexp - (exps * logits).sum(-1, keepdim=True) / total
    log_probs, top = logits.gather(-1, targets) - logsumexp, argmax == targets
    values = (log_probs, entropy, logits.mean(-1, keepdim=True), top)
    gradients = None
    if with_gradient:
        d_logits = exps.div_(total).neg_()  # -p, in the memory of exps
        d_logits.scatter_add_(-1, targets, d_logits.new_ones(targets.shape))  # e_t - p
        if softcap is not None:
            d_logits.mul_(logits.div_(softcap).square_().neg_().add_(1))
        gradients = d_logits.to(weight.dtype) @ weight
    return *(value[:, 0] for value in values), gradients
