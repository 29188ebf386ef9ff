"""Generate replies of a model, whole or as they are decoded, and compute its log-probabilities of given replies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from attune.compute.batching import batches_by_tokens
from attune.compute.memory import retry_batches_on_oom
from attune.compute.process import autocast
from attune.cpu.optimize import inference
from attune.generation.decoding import Prefilled, decode, decode_steps, prefill, reply_logps
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

# Tokens of the replies of a pass of log-probabilities: their logits are in memory at once.
LOGPS_TOKENS = 1024


def generate_replies(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    hardware: Hardware,
    draws: Draws | None = None,
) -> list[str]:
    """The replies of `replies_and_logps`, without log-probabilities."""
    return replies_and_logps(model, tokenizer, prompts, [()] * len(prompts), max_new_tokens, hardware, draws)[0]


def replies_and_logps(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    given: Sequence[Sequence[list[int]]],
    max_new_tokens: int,
    hardware: Hardware,
    draws: Draws | None = None,
) -> tuple[list[str], list[list[float]]]:
    """One reply to each prompt, and log-probabilities of given replies to it; a prompt is computed once for both.

    Several ranks share the batches; each returns everything.

    Args:
        model: in eval mode, on `compute.device`.
        tokenizer: the model's.
        prompts: N lists of token ids, each ending where a reply begins; prompts may repeat.
        given: the given replies to each prompt, as token ids; none where no log-probabilities are wanted.
        max_new_tokens: longest reply that is generated.
        hardware: device, precision, and the tokens of a batch.
        draws: sampling settings with a seed for each prompt. Equal prompt and seed give the same reply in any batch, up
            to rounding. None: greedy decoding.

    Returns:
        N texts without special tokens and outer white space, empty where the first token ended the reply; and for each
        prompt the means of `mean_logps`.
    """
    import torch
    from tqdm import tqdm

    stops, answers = stop_tokens(tokenizer, model.generation_config.eos_token_id), dict[int, tuple[str, list[float]]]()
    given = [[_fit(text, prompt, model) for text in texts] for prompt, texts in zip(prompts, given, strict=True)]
    lengths = [
        len(prompt) + max([max_new_tokens, *map(len, texts)]) for prompt, texts in zip(prompts, given, strict=True)
    ]
    bar = tqdm(total=len(prompts) // world_size(), desc="replies", unit="reply")

    def reply(batch: list[int]) -> None:
        """Answer the prompts `batch`."""
        choose = sampler(draws, batch, hardware.device) if draws else greedy
        prefilled = prefill(model, [prompts[i] for i in batch], _pad_id(tokenizer))
        logps = _given_logps(prefilled, [given[i] for i in batch], _pad_id(tokenizer))
        texts = tokenizer.batch_decode(decode(prefilled, max_new_tokens, stops, choose), skip_special_tokens=True)
        answers.update(zip(batch, zip(map(str.strip, texts), logps, strict=True), strict=True))
        bar.update(len(batch))

    with bar, torch.no_grad(), autocast(hardware), inference(model, hardware):
        retry_batches_on_oom(lengths, hardware.batch_tokens, reply)
    gathered = gather_by_index(answers)
    return [gathered[i][0] for i in range(len(prompts))], [gathered[i][1] for i in range(len(prompts))]


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
        for _, token in decode_steps(prefill(model, [prompt], _pad_id(tokenizer)), max_new_tokens, stops, choose):
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

    A prompt that several replies share is computed once. A reply that exceeds the model's positions is truncated at its
    end, as in training. Several ranks share the batches, as in `replies_and_logps`.
    """
    import torch
    from tqdm import tqdm

    replies = [_fit(one.reply, one.prompt, model) for one in completions]
    to_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(completions):
        to_prompt.setdefault(tuple(one.prompt), []).append(i)
    prompts, scores = list(to_prompt), dict[int, float]()
    lengths = [len(prompt) + max(len(replies[i]) for i in to_prompt[prompt]) for prompt in prompts]
    bar = tqdm(total=len(completions) // world_size(), desc="log-probabilities", unit="reply")

    def score(batch: list[int]) -> None:
        """Score the replies to the prompts `batch`."""
        answers = [to_prompt[prompts[i]] for i in batch]
        prefilled = prefill(model, [prompts[i] for i in batch], _pad_id(tokenizer))
        logps = _given_logps(prefilled, [[replies[i] for i in those] for those in answers], _pad_id(tokenizer))
        scores.update(zip(chain(*answers), chain(*logps), strict=True))
        bar.update(len(list(chain(*answers))))

    with bar, torch.no_grad(), autocast(hardware), inference(model, hardware):
        retry_batches_on_oom(lengths, hardware.batch_tokens, score)
    gathered = gather_by_index(scores)
    return [gathered[i] for i in range(len(completions))]


def _fit(reply: list[int], prompt: Sequence[int], model: PreTrainedModel) -> list[int]:
    """The reply, truncated to the positions that the prompt leaves."""
    room = positions(model) - len(prompt)
    return reply if len(reply) <= room else reply[: int(room)]


def _given_logps(prompts: Prefilled, given: Sequence[Sequence[list[int]]], pad_id: int) -> list[list[float]]:
    """The mean log-probabilities of the given replies to each prompt, in passes of replies of similar length."""
    answered = [prompt for prompt, replies in enumerate(given) for _ in replies]
    replies = list(chain(*given))
    scores: dict[int, float] = {}
    for batch in batches_by_tokens(list(map(len, replies)), LOGPS_TOKENS):
        logps = reply_logps(prompts, [answered[i] for i in batch], [replies[i] for i in batch], pad_id)
        scores |= {i: float(of_tokens.mean()) for i, of_tokens in zip(batch, logps, strict=True)}
    in_order = iter(range(len(replies)))
    return [[scores[next(in_order)] for _ in texts] for texts in given]


def _pad_id(tokenizer: Tokenizer) -> int:
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id
