"""Levels of empathy in replies, by the EPITOME classifiers: batched, with each distinct text encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.dialogues import Turn
from stages.scoring.classifier import BATCH, autocast, batches, pad
from stages.scoring.epitome_files import load
from stages.scoring.epitome_model import LEVELS, MECHANISMS, Classifiers, EpitomeError, encoder_of, heads

if TYPE_CHECKING:
    import torch
    from torch import nn

    from stages.params import Hardware

__all__ = ["MECHANISMS", "EpitomeError", "level_logits", "score", "seeker_post", "squared_differences"]


def seeker_post(context: Sequence[Turn]) -> str:
    """What the classifiers read as the seeker's post: the last user turn of a context, empty where there is none."""
    return next((turn.text for turn in reversed(context) if turn.role == "user"), "")


def lowered(text: str) -> str:
    """Lower case, character by character: a character whose lower case is two (İ) stays, so that offsets hold."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def squared_differences(levels: Sequence[int], references: Sequence[int]) -> list[int]:
    """For each example (level - level of the reference)², 0 to 4: its part in diff-EPITOME (Lee et al. 2022).

    Raises:
        ValueError: the levels are not as many on both sides.
    """
    return [(own - other) ** 2 for own, other in zip(levels, references, strict=True)]


def score(folder: Path, seekers: Sequence[str], responses: Sequence[str], hardware: Hardware) -> dict[str, list[int]]:
    """Levels of N responses, each to the seeker post beside it.

    Args:
        folder: what stage `epitome` wrote.
        seekers: N posts.
        responses: N replies.
        hardware: device and precision.

    Returns:
        For each mechanism N levels, 0 to 2, in the order of the texts.

    Raises:
        EpitomeError: `folder` is not what stage `epitome` writes.
        ValueError: the texts are not as many on both sides.
    """
    import torch

    torch.set_num_threads(hardware.threads)
    logits = level_logits(load(folder, hardware), seekers, responses, hardware)
    return {mechanism: values.argmax(-1).tolist() for mechanism, values in logits.items()}


def level_logits(
    classifiers: Classifiers,
    seekers: Sequence[str],
    responses: Sequence[str],
    hardware: Hardware,
    batch_size: int = BATCH,
) -> dict[str, torch.Tensor]:
    """For each mechanism the logits of the levels, (N, 3), fp32 on the CPU.

    Each distinct seeker post goes through each distinct seeker encoder once, each distinct response through a responder
    encoder once; batches are of similar length, and padding is never attended to.

    Raises:
        ValueError: the texts are not as many on both sides.
    """
    import torch

    pairs = list(zip(seekers, responses, strict=True))
    posts, replies = list(dict.fromkeys(seekers)), list(dict.fromkeys(responses))
    at = {text: i for i, text in enumerate(posts)}, {text: i for i, text in enumerate(replies)}
    rows = [(at[0][post], at[1][reply]) for post, reply in pairs]
    post_tokens, reply_tokens = (tokens_of(classifiers, texts) for texts in (posts, replies))
    seeker_states: dict[int, list[torch.Tensor]] = {}
    logits = {}
    with torch.inference_mode(), autocast(hardware):
        for mechanism, model in classifiers.models.items():
            seeker = encoder_of(model, "seeker_encoder")
            if id(seeker) not in seeker_states:
                seeker_states[id(seeker)] = states_of(seeker, post_tokens, batch_size)
            # The level is read off the first token: the states of the others are not kept.
            firsts = states_of(encoder_of(model, "responder_encoder"), reply_tokens, batch_size, keep=1)
            logits[mechanism] = _levels(model, seeker_states[id(seeker)], firsts, rows, batch_size)
    return logits


def _levels(
    model: nn.ModuleDict,
    posts: Sequence[torch.Tensor],
    firsts: Sequence[torch.Tensor],
    rows: Sequence[tuple[int, int]],
    batch_size: int,
) -> torch.Tensor:
    """Logits of the levels, (N, 3), from the states of posts (S, D) and of the replies' first tokens (1, D)."""
    import torch

    logits = torch.empty(len(rows), LEVELS)
    for batch in batches([len(posts[post]) for post, _ in rows], batch_size):
        seeker, mask = pad([posts[rows[i][0]] for i in batch])
        states = torch.stack([firsts[rows[i][1]] for i in batch])
        logits[batch] = heads(model, states, seeker, mask)[0].float().cpu()
    return logits


def tokens_of(classifiers: Classifiers, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the lower-cased texts, special tokens included, cut at the classifiers' length."""
    if not texts:
        return []
    cut = {"truncation": True, "max_length": classifiers.max_length}
    return list(classifiers.tokenizer([lowered(text) for text in texts], **cut)["input_ids"])


def states_of(encoder: Any, tokens: Sequence[list[int]], batch_size: int = BATCH, keep: int | None = None) -> list[Any]:
    """Last hidden states of each text without padding, (T, D) each, or only of its first `keep` tokens."""
    import torch

    states: list[Any] = [None] * len(tokens)
    for batch in batches([len(ids) for ids in tokens], batch_size):
        ids, mask = pad([torch.tensor(tokens[i], device=encoder.device) for i in batch])
        output = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        for i, row in zip(batch, output, strict=True):
            # A copy, or a slice of a few tokens would keep the whole batch in memory.
            states[i] = row[: min(len(tokens[i]), keep or len(tokens[i]))].clone()
    return states
