"""Levels of empathy in replies, by the EPITOME classifiers: in batches, with each distinct text encoded once.

In fp32, whatever `compute.dtype` is: in bf16 a level between two depends on the batch and on the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.classifiers.common.batching import BATCH_SIZE, pad
from attune.classifiers.epitome.files import load
from attune.classifiers.epitome.model import (
    LEVELS,
    Classifiers,
    attention_mask,
    encoder_of,
    frozen_layers,
    heads,
    layers_of,
    run_layer_on_first,
    run_layers,
)
from attune.compute.batching import batches_by_count
from attune.data.dialogue import Turn

if TYPE_CHECKING:
    import torch
    from torch import nn

    from attune.config.schema import Hardware


def seeker_post(context: Sequence[Turn]) -> str:
    """The text that the classifiers read as the seeker's post: the last user turn of a context, or an empty text."""
    return next((turn.text for turn in reversed(context) if turn.role == "user"), "")


def score(folder: Path, seekers: Sequence[str], responses: Sequence[str], hardware: Hardware) -> dict[str, list[int]]:
    """Levels of N responses, each to its seeker post.

    Args:
        folder: written by `files.save`.
        seekers: N posts.
        responses: N replies.
        hardware: device and threads.

    Returns:
        For each mechanism N levels, 0 to 2, in the order of the texts.

    Raises:
        ModelError: as `files.load`.
        ValueError: the numbers of posts and replies differ.
    """
    import torch

    torch.set_num_threads(hardware.threads)
    return levels_of(load(folder, hardware), seekers, responses)


def levels_of(classifiers: Classifiers, seekers: Sequence[str], responses: Sequence[str]) -> dict[str, list[int]]:
    """As `score`, by loaded classifiers."""
    logits = level_logits(classifiers, seekers, responses)
    return {mechanism: values.argmax(-1).tolist() for mechanism, values in logits.items()}


def level_logits(
    classifiers: Classifiers, seekers: Sequence[str], responses: Sequence[str], batch_size: int = BATCH_SIZE
) -> dict[str, torch.Tensor]:
    """Logits of the levels for each mechanism, (N, 3), on the CPU.

    Each distinct seeker post passes each distinct seeker encoder once. Each distinct response passes each responder
    encoder once, and the layers that responder encoders share once in all. Batches hold texts of similar length, and
    padding is masked.

    Raises:
        ValueError: the numbers of posts and replies differ.
    """
    import torch

    pairs = list(zip(seekers, responses, strict=True))
    posts, replies = list(dict.fromkeys(seekers)), list(dict.fromkeys(responses))
    post_index, reply_index = ({text: i for i, text in enumerate(texts)} for texts in (posts, replies))
    rows = [(post_index[post], reply_index[reply]) for post, reply in pairs]
    post_tokens, reply_tokens = (tokens_of(classifiers, texts) for texts in (posts, replies))
    # States by the identity of the modules that compute them, which several classifiers may share.
    post_states: dict[int, list[torch.Tensor]] = {}
    frozen_states: dict[int, list[torch.Tensor]] = {}
    logits = {}
    with torch.no_grad():
        for mechanism, model in classifiers.models.items():
            seeker, responder = encoder_of(model, "seeker_encoder"), encoder_of(model, "responder_encoder")
            frozen = frozen_layers(model)
            seeker_id, frozen_id = id(seeker), id(responder.embeddings)
            if seeker_id not in post_states:
                post_states[seeker_id] = states_of(seeker, post_tokens, batch_size, len(layers_of(seeker)))
            if frozen_id not in frozen_states:
                frozen_states[frozen_id] = states_of(responder, reply_tokens, batch_size, frozen)
            first_states = _first_states(responder, frozen, frozen_states[frozen_id], batch_size)
            logits[mechanism] = _level_logits(model, post_states[seeker_id], first_states, rows, batch_size)
    return logits


def _first_states(encoder: Any, done: int, states: Sequence[torch.Tensor], batch_size: int) -> list[Any]:
    """The first token's state (1, D) of each text after all layers: the level head reads no other token.

    `states` are those after the first `done` layers.
    """
    first_states: list[Any] = [None] * len(states)
    layers = layers_of(encoder)[done:]
    for batch in batches_by_count([len(rows) for rows in states], batch_size):
        padded, tokens = pad([states[i] for i in batch])
        mask = attention_mask(encoder, tokens)
        output = run_layer_on_first(layers[-1], run_layers(layers[:-1], padded, mask), mask)
        for i, row in zip(batch, output, strict=True):
            first_states[i] = row
    return first_states


def _level_logits(
    model: nn.ModuleDict,
    post_states: Sequence[torch.Tensor],
    first_states: Sequence[torch.Tensor],
    rows: Sequence[tuple[int, int]],
    batch_size: int,
) -> torch.Tensor:
    """Logits of the levels, (N, 3), of N rows (index of the post, index of the reply)."""
    import torch

    logits = torch.empty(len(rows), LEVELS)
    for batch in batches_by_count([len(post_states[post]) for post, _ in rows], batch_size):
        seeker, mask = pad([post_states[rows[i][0]] for i in batch])
        states = torch.stack([first_states[rows[i][1]] for i in batch])
        logits[batch] = heads(model, states, seeker, mask)[0].cpu()
    return logits


def tokens_of(classifiers: Classifiers, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the lower-cased texts with special tokens, cut at the classifiers' maximum length.

    By `str.lower`, as the authors' code.
    """
    if not texts:
        return []
    cut = {"truncation": True, "max_length": classifiers.max_length}
    return list(classifiers.tokenizer([text.lower() for text in texts], **cut)["input_ids"])


def states_of(encoder: Any, tokens: Sequence[list[int]], batch_size: int, layers: int) -> list[Any]:
    """States (T, D) of each text after the embeddings and the first `layers` layers, without padding."""
    import torch

    states: list[Any] = [None] * len(tokens)
    for batch in batches_by_count([len(ids) for ids in tokens], batch_size):
        ids, mask = pad([torch.tensor(tokens[i], device=encoder.device) for i in batch])
        embedded = encoder.embeddings(input_ids=ids)
        output = run_layers(layers_of(encoder)[:layers], embedded, attention_mask(encoder, mask))
        for i, row in zip(batch, output, strict=True):
            states[i] = row[: len(tokens[i])]
    return states
