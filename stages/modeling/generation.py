"""Replies of a model, and the log-probabilities that it gives to replies of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.modeling.chat import Completion, stop_tokens
from stages.modeling.collate import batches_by_length
from stages.modeling.loading import autocast, positions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from stages.params import Generate, Hardware


def generate_replies(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    settings: Generate,
    hardware: Hardware,
    seed: int,
) -> list[str]:
    """One reply to each prompt, in the order of the prompts; batched by length.

    Args:
        model: in eval mode, on `hardware.device`.
        tokenizer: the model's.
        prompts: N lists of token ids, each ending where a reply begins.
        settings: length, batch and decoding.
        hardware: device and precision.
        seed: of the sampling, where `settings.do_sample`.

    Returns:
        N texts without special tokens and outer white space; an empty text is a reply that ended at once.
    """
    import torch
    from tqdm import tqdm
    from transformers import set_seed

    set_seed(seed)
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if settings.do_sample else {}
    stops = stop_tokens(tokenizer)
    replies = [""] * len(prompts)
    with torch.inference_mode(), autocast(hardware), tqdm(total=len(prompts), desc="replies", unit="reply") as bar:
        for batch in batches_by_length([len(p) for p in prompts], settings.batch_size):
            ids, mask = _left_pad([prompts[i] for i in batch], _pad_id(tokenizer), hardware.device)
            output = model.generate(  # type: ignore[operator]  # the mixin's method is typed as a tensor
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=settings.max_new_tokens,
                do_sample=settings.do_sample,
                eos_token_id=stops,
                pad_token_id=_pad_id(tokenizer),
                **sampling,
            )
            texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, texts, strict=True):
                replies[i] = text.strip()
            bar.update(len(batch))
    return replies


def mean_logps(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    completions: Sequence[Completion],
    batch_size: int,
    hardware: Hardware,
    progress: str,
) -> list[float]:
    """Length-normalised log-probability of each reply under its prompt: mean over its tokens in nats, end included.

    A reply that does not fit into the model's positions behind its prompt is cut at its end, as in training.
    """
    import torch
    from tqdm import tqdm

    completions = [_cut(one, positions(model)) for one in completions]
    scores = [0.0] * len(completions)
    lengths = [len(c.prompt) + len(c.reply) for c in completions]
    with torch.inference_mode(), autocast(hardware), tqdm(total=len(completions), desc=progress, unit="reply") as bar:
        for batch in batches_by_length(lengths, batch_size):
            means = _batch_logps(model, [completions[i] for i in batch], _pad_id(tokenizer), hardware.device)
            for i, score in zip(batch, means.tolist(), strict=True):
                scores[i] = score
            bar.update(len(batch))
    return scores


def _batch_logps(model: PreTrainedModel, completions: Sequence[Completion], pad_id: int, device: str) -> torch.Tensor:
    """Mean log-probability of each reply, shape (B,).

    Rows are padded on the left, so that the replies end together and only the last positions need the vocabulary.
    """
    import torch

    ids, mask = _left_pad([c.prompt + c.reply for c in completions], pad_id, device)
    kept = max(len(c.reply) for c in completions)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=kept + 1)
    logps = output.logits[:, :-1].float().log_softmax(-1)
    taken = logps.gather(-1, ids[:, -kept:, None])[..., 0]
    lengths = torch.tensor([len(c.reply) for c in completions], device=device)
    is_reply = torch.arange(kept, device=device) >= kept - lengths[:, None]
    return (taken * is_reply).sum(-1) / lengths


def _cut(one: Completion, positions: float) -> Completion:
    room = positions - len(one.prompt)
    return one if len(one.reply) <= room else Completion(one.prompt, one.reply[: int(room)])


def _left_pad(prompts: Sequence[list[int]], pad_id: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _pad_id(tokenizer: Tokenizer) -> int:
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id
