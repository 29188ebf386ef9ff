"""Replies of a model, and the log-probabilities that it gives to replies of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attune.compute.memory import retry_batches_on_oom
from attune.compute.process import autocast
from attune.cpu.optimize import plain_attention
from attune.generation.decoding import decode, left_pad
from attune.generation.sampling import Draws, drawn, greedy
from attune.models.chat_template import Completion, stop_tokens
from attune.models.loading import positions
from attune.runtime.distributed import gather_by_index, world_size

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Hardware


def generate_replies(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    hardware: Hardware,
    draws: Draws | None = None,
) -> list[str]:
    """One reply to each prompt, in the order of the prompts. Several ranks share the batches; each returns all replies.

    Args:
        model: in eval mode, on `hardware.device`.
        tokenizer: the model's.
        prompts: N lists of token ids, each ending where a reply begins; one may stand there several times.
        max_new_tokens: longest reply.
        hardware: device, precision, and the tokens of a batch.
        draws: how replies are drawn, with a seed a prompt; equal prompt and seed give the same reply, in whatever batch
            (but for rounding). None: greedily.

    Returns:
        N texts without special tokens and outer white space; an empty text is a reply that ended at once.
    """
    import torch
    from tqdm import tqdm

    stops, replies = stop_tokens(tokenizer), dict[int, str]()
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    bar = tqdm(total=len(prompts) // world_size(), desc="replies", unit="reply")

    def reply(batch: list[int]) -> None:
        choose = drawn(draws, batch, hardware.device) if draws else greedy
        found = decode(model, [prompts[i] for i in batch], max_new_tokens, stops, choose, _pad_id(tokenizer))
        for i, text in zip(batch, tokenizer.batch_decode(found, skip_special_tokens=True), strict=True):
            replies[i] = text.strip()
        bar.update(len(batch))

    with bar, torch.no_grad(), autocast(hardware), plain_attention(model, hardware):
        retry_batches_on_oom(lengths, hardware.batch_tokens, reply)
    found = gather_by_index(replies)
    return [found[i] for i in range(len(prompts))]


def mean_logps(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    completions: Sequence[Completion],
    hardware: Hardware,
    progress: str,
) -> list[float]:
    """Length-normalised log-probability of each reply under its prompt: mean over its tokens in nats, end included.

    A reply that does not fit into the model's positions behind its prompt is cut at its end, as in training. Several
    ranks share the batches, as in `generate_replies`.
    """
    import torch
    from tqdm import tqdm

    completions = [_cut(one, positions(model)) for one in completions]
    scores: dict[int, float] = {}
    lengths = [len(c.prompt) + len(c.reply) for c in completions]
    bar = tqdm(total=len(completions) // world_size(), desc=progress, unit="reply")

    def score(batch: list[int]) -> None:
        means = _batch_logps(model, [completions[i] for i in batch], _pad_id(tokenizer), hardware.device)
        for i, value in zip(batch, means.tolist(), strict=True):
            scores[i] = value
        bar.update(len(batch))

    with bar, torch.no_grad(), autocast(hardware):
        retry_batches_on_oom(lengths, hardware.batch_tokens, score)
    found = gather_by_index(scores)
    return [found[i] for i in range(len(completions))]


def _batch_logps(model: PreTrainedModel, completions: Sequence[Completion], pad_id: int, device: str) -> torch.Tensor:
    """Mean log-probability of each reply, shape (B,).

    Rows are padded on the left, so that the replies end together and only the last positions need the vocabulary.
    """
    import torch

    ids, mask = left_pad([c.prompt + c.reply for c in completions], pad_id, device)
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


def _pad_id(tokenizer: Tokenizer) -> int:
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id
