"""Generate replies of a model, whole or as they are decoded, and compute its log-probabilities of given replies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from attune.compute.memory import retry_batches_on_oom
from attune.compute.process import autocast
from attune.cpu.optimize import inference
from attune.generation.decoding import decode, decode_steps, reply_logps
from attune.generation.sampling import Draws, greedy, sampler
from attune.models.chat_template import Completion, stop_tokens
from attune.models.loading import positions
from attune.runtime.distributed import gather_by_index, world_size

# Up to the last word that white space follows: nothing that is decoded later changes it.
WHOLE_WORDS = re.compile(r".*\S(?=\s)", re.DOTALL)

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Hardware

# Bound of the tokens of a batch of log-probabilities: the logits of its replies are in memory at once.
LOGPS_TOKENS = 4096


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
        model: in eval mode, on `compute.device`.
        tokenizer: the model's.
        prompts: N lists of token ids, each ending where a reply begins; prompts may repeat.
        max_new_tokens: longest reply.
        hardware: device, precision, and the tokens of a batch.
        draws: sampling settings with a seed for each prompt. Equal prompt and seed give the same reply in any batch, up
            to rounding. None: greedy decoding.

    Returns:
        N texts without special tokens and outer white space; empty where the first token ended the reply.
    """
    import torch
    from tqdm import tqdm

    stops, replies = stop_tokens(tokenizer, model.generation_config.eos_token_id), dict[int, str]()
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    bar = tqdm(total=len(prompts) // world_size(), desc="replies", unit="reply")

    def reply(batch: list[int]) -> None:
        choose = sampler(draws, batch, hardware.device) if draws else greedy
        tokens = decode(model, [prompts[i] for i in batch], max_new_tokens, stops, choose, _pad_id(tokenizer))
        for i, text in zip(batch, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            replies[i] = text.strip()
        bar.update(len(batch))

    with bar, torch.no_grad(), autocast(hardware), inference(model, hardware):
        retry_batches_on_oom(lengths, hardware.batch_tokens, reply)
    gathered = gather_by_index(replies)
    return [gathered[i] for i in range(len(prompts))]


def stream_reply(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: list[int],
    max_new_tokens: int,
    hardware: Hardware,
    draws: Draws | None = None,
) -> Iterator[str]:
    """The reply of `generate_replies` to one prompt, in pieces as it is decoded, without a progress bar.

    A piece is one or more whole words with the white space before them, so that none ends within a character.

    Args:
        model: in eval mode, on `compute.device`.
        tokenizer: the model's.
        prompt: token ids, ending where the reply begins.
        max_new_tokens: longest reply.
        hardware: device and precision.
        draws: sampling settings with one seed; None: greedy decoding.
    """
    import torch

    choose = sampler(draws, [0], hardware.device) if draws else greedy
    stops, tokens = stop_tokens(tokenizer, model.generation_config.eos_token_id), list[int]()
    text, shown = "", 0
    with torch.no_grad(), autocast(hardware), inference(model, hardware):
        steps = decode_steps(model, [prompt], max_new_tokens, stops, choose, _pad_id(tokenizer))
        for _, token in steps:
            tokens.append(token)
            text = tokenizer.batch_decode([tokens], skip_special_tokens=True)[0].lstrip()
            if (words := WHOLE_WORDS.match(text)) and words.end() > shown:
                yield text[shown : words.end()]
                shown = words.end()
    if rest := text.rstrip()[shown:]:
        yield rest


def mean_logps(
    model: PreTrainedModel, tokenizer: Tokenizer, completions: Sequence[Completion], hardware: Hardware
) -> list[float]:
    """Length-normalised log-probability of each reply given its prompt: the mean over its tokens in nats, EOS included.

    A prompt that several replies share is computed once for those that stand next to each other. A reply that exceeds
    the model's positions is truncated at its end, as in training. Several ranks share the batches, as in
    `generate_replies`.
    """
    import torch
    from tqdm import tqdm

    completions = [_truncate(completion, positions(model)) for completion in completions]
    scores: dict[int, float] = {}
    longest: dict[tuple[int, ...], int] = {}
    for one in completions:
        longest[tuple(one.prompt)] = max(longest.get(tuple(one.prompt), 0), len(one.reply))
    # Replies to the same prompt have the same length here, so that they stay next to each other in a batch.
    lengths = [len(one.prompt) + longest[tuple(one.prompt)] for one in completions]
    bar = tqdm(total=len(completions) // world_size(), desc="log-probabilities", unit="reply")

    def score(batch: list[int]) -> None:
        prompts, replies = [completions[i].prompt for i in batch], [completions[i].reply for i in batch]
        for i, logps in zip(batch, reply_logps(model, prompts, replies, _pad_id(tokenizer)), strict=True):
            scores[i] = float(logps.mean())
        bar.update(len(batch))

    with bar, torch.no_grad(), autocast(hardware), inference(model, hardware):
        retry_batches_on_oom(lengths, min(hardware.batch_tokens, LOGPS_TOKENS), score)
    gathered = gather_by_index(scores)
    return [gathered[i] for i in range(len(completions))]


def _truncate(completion: Completion, positions: float) -> Completion:
    room = positions - len(completion.prompt)
    if len(completion.reply) <= room:
        return completion
    return Completion(completion.prompt, completion.reply[: int(room)])


def _pad_id(tokenizer: Tokenizer) -> int:
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id
