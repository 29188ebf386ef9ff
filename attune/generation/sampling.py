"""Choose the next token: greedily, or by seeded sampling that does not depend on the other rows of the batch.

transformers' `generate` samples a whole batch from one random state, so that a reply would change with its batch. Here
each row has its own random state and samples with the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014):

    argmax_v (log p_v + g_v),   g_v = -log e_v,   e_v ~ Exp(1)

is a sample of the distribution p. Logits may stand for log p, since a constant does not move the argmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    # From the next token's logits (R, V) and the batch index of each row to R token ids.
    Choose = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class Draws:
    """Sampling settings: `temperature` > 0, nucleus `top_p` in (0, 1], and a seed < 2**63 for each reply."""

    temperature: float
    top_p: float
    seeds: Sequence[int]


def greedy(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The most likely token of each row."""
    return logits.argmax(-1)


def sampler(draws: Draws, batch: Sequence[int], device: str) -> Choose:
    """A function that samples the next tokens of the replies `batch`, indices into `draws.seeds`."""
    import torch
    from transformers import TopPLogitsWarper

    generators = [torch.Generator(device).manual_seed(draws.seeds[i]) for i in batch]
    # top_p = 1 keeps every token; the warper would drop some by rounding of the cumulative sum.
    nucleus = TopPLogitsWarper(draws.top_p) if draws.top_p < 1 else None

    def choose(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """A token for each row of logits (N, V): the largest logit plus Gumbel noise is a draw from the softmax."""
        scaled = logits / draws.temperature
        if nucleus is not None:
            scaled = nucleus(None, scaled)
        noise = torch.empty_like(scaled)
        for row_noise, row in zip(noise, rows, strict=True):
            row_noise.exponential_(generator=generators[row])
        return (scaled - noise.log_()).argmax(-1)

    return choose
