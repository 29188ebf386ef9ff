"""How the next token is taken: the likeliest, or a seeded draw that depends on its row alone, not on its neighbours.

`generate` of transformers draws a whole batch from one random state, so that a reply would change with the batch. Here
each row has a state of its own and adds Gumbel noise to the log-probabilities: their argmax is a draw from the
distribution (Gumbel 1954; Maddison et al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    # Scores (R, V) of the next token and the places of their rows in the batch to R token ids.
    Choose = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class Draws:
    """Replies are drawn: with `temperature` > 0, from the nucleus `top_p` in (0, 1], each by its own seed < 2**63."""

    temperature: float
    top_p: float
    seeds: Sequence[int]


def greedy(scores: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The likeliest token of each row."""
    return scores.argmax(-1)


def drawn(draws: Draws, batch: Sequence[int], device: str) -> Choose:
    """What draws the tokens of the replies `batch`, indices into `draws.seeds`."""
    import torch
    from transformers import TopPLogitsWarper

    states = [torch.Generator(device).manual_seed(draws.seeds[i]) for i in batch]
    # At 1 the nucleus is everything, up to rounding of the cumulative sum.
    nucleus = TopPLogitsWarper(draws.top_p) if draws.top_p < 1 else None

    def choose(scores: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        tempered = scores / draws.temperature
        if nucleus is not None:
            tempered = nucleus(None, tempered)
        noise = torch.empty_like(tempered)
        for one, row in zip(noise, rows, strict=True):
            one.exponential_(generator=states[row])
        return (tempered - noise.log_()).argmax(-1)

    return choose
