"""Seeded samples of replies: what is drawn for an example depends on its key alone, not on its neighbours in a batch.

`generate` of transformers draws a whole batch from one random state, so that a reply would change with the batch. Here
each row has a state of its own and adds Gumbel noise to the log-probabilities: their argmax is a draw from the
distribution (Gumbel 1954; Maddison et al. 2014), so a greedy search over the noised scores samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.modeling.chat import stop_tokens
from stages.modeling.collate import batches_by_length
from stages.modeling.loading import autocast

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from stages.params import Hardware


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn: `max_new_tokens` a reply, `temperature` > 0, the nucleus `top_p` in (0, 1]."""

    max_new_tokens: int
    batch_size: int
    temperature: float
    top_p: float


def sample_replies(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    hardware: Hardware,
) -> list[str]:
    """One reply to each prompt, in the order of the prompts.

    Args:
        model: in eval mode, on `hardware.device`.
        tokenizer: the model's.
        prompts: N lists of token ids, each ending where a reply begins; one may stand there several times.
        seeds: N seeds below 2**63; equal prompt and seed give the same reply, in whatever batch (but for rounding).
        sampling: length, batch and distribution.
        hardware: device and precision.

    Returns:
        N texts without special tokens and outer white space.
    """
    import torch
    from tqdm import tqdm

    stops, replies = stop_tokens(tokenizer), [""] * len(prompts)
    with torch.inference_mode(), autocast(hardware), tqdm(total=len(prompts), desc="samples", unit="reply") as bar:
        for batch in batches_by_length([len(p) for p in prompts], sampling.batch_size):
            padded = tokenizer.pad(
                {"input_ids": [prompts[i] for i in batch]}, padding_side="left", return_tensors="pt"
            ).to(hardware.device)
            noise = _gumbel_noise([seeds[i] for i in batch], sampling, hardware.device)
            output = model.generate(  # type: ignore[operator]  # the mixin's method is typed as a tensor
                **padded,
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,
                logits_processor=[noise],
                eos_token_id=stops,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts = tokenizer.batch_decode(output[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, texts, strict=True):
                replies[i] = text.strip()
            bar.update(len(batch))
    return replies


def _gumbel_noise(seeds: Sequence[int], sampling: Sampling, device: str) -> Any:
    """A logits processor that tempers and cuts the scores (B, V) and adds each row's own Gumbel noise."""
    import torch
    from transformers import LogitsProcessor, TopPLogitsWarper

    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    # At 1 the nucleus is everything, up to rounding of the cumulative sum.
    nucleus = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None

    class GumbelNoise(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            tempered = scores.float() / sampling.temperature
            if nucleus is not None:
                tempered = nucleus(input_ids, tempered)
            exponentials = torch.stack(
                [torch.empty_like(row).exponential_(generator=g) for row, g in zip(tempered, generators, strict=True)]
            )
            return tempered - exponentials.log()

    return GumbelNoise()
