"""Levels of empathy in replies, by the EPITOME classifiers: batched, with each distinct text encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.classifiers.common.classifier import BATCH, pad
from attune.classifiers.epitome.files import load
from attune.classifiers.epitome.model import (
    LEVELS,
    Classifiers,
    encoder_of,
    first_through,
    frozen_layers,
    heads,
    layers_of,
    through,
)
from attune.compute.batching import batches_by_count
from attune.compute.process import autocast
from attune.data.dialogue import Turn

if TYPE_CHECKING:
    import torch
    from torch import nn

    from attune.config.schema import Hardware


def seeker_post(context: Sequence[Turn]) -> str:
    """What the classifiers read as the seeker's post: the last user turn of a context, empty where there is none."""
    return next((turn.text for turn in reversed(context) if turn.role == "user"), "")


def lowered(text: str) -> str:
    """Lower case, character by character: a character whose lower case is two (İ) stays, so that offsets hold."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


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
        ModelError: `folder` is not what stage `epitome` writes.
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
    encoder once, and through the layers that the responder encoders have in common once; batches are of similar length,
    and padding is never attended to.

    Raises:
        ValueError: the texts are not as many on both sides.
    """
    import torch

    pairs = list(zip(seekers, responses, strict=True))
    posts, replies = list(dict.fromkeys(seekers)), list(dict.fromkeys(responses))
    at = {text: i for i, text in enumerate(posts)}, {text: i for i, text in enumerate(replies)}
    rows = [(at[0][post], at[1][reply]) for post, reply in pairs]
    post_tokens, reply_tokens = (tokens_of(classifiers, texts) for texts in (posts, replies))
    # By the modules that compute them: classifiers have a seeker encoder, or frozen layers, in common.
    post_states: dict[int, list[torch.Tensor]] = {}
    below: dict[int, list[torch.Tensor]] = {}
    logits = {}
    with torch.no_grad(), autocast(hardware):
        for mechanism, model in classifiers.models.items():
            seeker, responder = encoder_of(model, "seeker_encoder"), encoder_of(model, "responder_encoder")
            frozen, last = frozen_layers(model), len(layers_of(responder))
            if id(seeker) not in post_states:
                post_states[id(seeker)] = states_of(seeker, post_tokens, batch_size, last)
            if id(responder.embeddings) not in below:
                below[id(responder.embeddings)] = states_of(responder, reply_tokens, batch_size, frozen)
            firsts = _firsts(layers_of(responder)[frozen:], below[id(responder.embeddings)], batch_size)
            logits[mechanism] = _levels(model, post_states[id(seeker)], firsts, rows, batch_size)
    return logits


def _firsts(layers: Sequence[Any], below: Sequence[torch.Tensor], batch_size: int) -> list[Any]:
    """The first token's state (1, D) of each text behind `layers`: the level is read off it alone."""
    firsts: list[Any] = [None] * len(below)
    for batch in batches_by_count([len(states) for states in below], batch_size):
        states, mask = pad([below[i] for i in batch])
        for i, row in zip(batch, first_through(layers[-1], through(layers[:-1], states, mask), mask), strict=True):
            firsts[i] = row
    return firsts


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
    for batch in batches_by_count([len(posts[post]) for post, _ in rows], batch_size):
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


def states_of(encoder: Any, tokens: Sequence[list[int]], batch_size: int, layers: int) -> list[Any]:
    """States (T, D) of each text behind the encoder's embeddings and first `layers` layers, without padding."""
    import torch

    states: list[Any] = [None] * len(tokens)
    for batch in batches_by_count([len(ids) for ids in tokens], batch_size):
        ids, mask = pad([torch.tensor(tokens[i], device=encoder.device) for i in batch])
        output = through(layers_of(encoder)[:layers], encoder.embeddings(input_ids=ids), mask)
        for i, row in zip(batch, output, strict=True):
            states[i] = row[: len(tokens[i])]
    return states
