"""EPITOME's levels by a cross-encoder: one encoder reads both posts as one input, and each mechanism has its heads.

    [CLS] seeker post [SEP] response [SEP]          level = out_proj(relu(dense(mean H)))          rationale = W H

H are the encoder's states. The mean is over the response's, as of the sentence encoders that it begins from; the state
of [CLS], which those do not use, learns more slowly. The mechanisms share the encoder, so that one pass gives all
levels, where bi-encoders (`model.py`) take a seeker encoder and three responder encoders. It is not the classifier of
Sharma et al. 2020, whose attention from response to post is inside the encoder here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attune.classifiers.common.batching import BATCH_SIZE, pad
from attune.classifiers.epitome.model import LEVELS, MECHANISMS, layers_of, require_trained_layer
from attune.compute.batching import batches_by_count
from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True)
class CrossEncoder:
    """The model of `make_model`, its tokenizer, and the maximum length of either post in tokens."""

    model: nn.ModuleDict
    tokenizer: Tokenizer
    max_length: int


@dataclass(frozen=True, order=True)
class Pair:
    """T token ids of both posts with special tokens, and the position of the response's first token."""

    ids: tuple[int, ...]
    response: int


@dataclass(frozen=True)
class Tokens:
    """T token ids of a lower-cased text without special tokens, and their (start, end) in it."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def make_model(encoder: PreTrainedModel, max_length: int, frozen_layers: int = 0) -> nn.ModuleDict:
    """`encoder` with random heads (torch's seed), on the encoder's device.

    Args:
        encoder: of BERT's family, or MPNet; it is part of the model.
        max_length: of either post in tokens.
        frozen_layers: of the encoder, from the embeddings up.

    Raises:
        ModelError: no layer would be left to train, or the encoder has too few positions for two posts.
    """
    from torch import nn

    positions = encoder.config.max_position_embeddings
    # Four special tokens in place of two for each post; the positions of RoBERTa and MPNet begin at 2.
    if 2 * max_length + 2 > positions:
        raise ModelError(
            f"epitome.max_length = {max_length}: two posts of that length do not fit the {positions} positions of the "
            f"encoder: at most {positions // 2 - 1}"
        )
    require_trained_layer(encoder, frozen_layers)
    width = encoder.config.hidden_size

    def heads() -> nn.ModuleDict:
        """The heads of a mechanism."""
        layers = {
            "dense": nn.Linear(width, width),
            "out_proj": nn.Linear(width, LEVELS),
            "rationale_classifier": nn.Linear(width, 2),
        }
        for layer in layers.values():
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        return nn.ModuleDict(layers)

    encoder.requires_grad_(True)
    for part in (encoder.embeddings, *layers_of(encoder)[:frozen_layers]) if frozen_layers else ():
        part.requires_grad_(False)
    return nn.ModuleDict({"encoder": encoder, **{name: heads() for name in MECHANISMS}}).to(encoder.device)


def tokens_of(classifier: CrossEncoder, texts: Sequence[str]) -> dict[str, Tokens]:
    """The tokens of each distinct text, lower-cased by `str.lower`, cut so that with two special tokens it has at most
    `max_length`."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    encoded = classifier.tokenizer(
        [text.lower() for text in distinct],
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=True,
        max_length=classifier.max_length - 2,
    )
    rows = zip(distinct, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return {text: Tokens(ids, offsets) for text, ids, offsets in rows}


def pair_of(tokenizer: Tokenizer, post: Tokens, response: Tokens) -> Pair:
    """Both texts as one input, between them as many [SEP] as the tokenizer puts between the texts of a pair."""
    between = [tokenizer.sep_token_id] * (tokenizer.num_special_tokens_to_add(pair=True) - 2)
    start = [tokenizer.cls_token_id, *post.ids, *between]
    return Pair((*start, *response.ids, tokenizer.sep_token_id), len(start))


def states_of(model: nn.ModuleDict, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """States of the encoder, (B, T, D), and the mask (B, T), true for the response and the [SEP] after it."""
    import torch

    encoder: Any = model["encoder"]
    ids, mask = pad([torch.tensor(pair.ids, device=encoder.device) for pair in pairs])
    starts = torch.tensor([pair.response for pair in pairs], device=encoder.device)
    response = mask & (torch.arange(ids.shape[1], device=encoder.device) >= starts[:, None])
    segments = {"token_type_ids": response.long()} if getattr(encoder.config, "type_vocab_size", 1) > 1 else {}
    return encoder(input_ids=ids, attention_mask=mask.long(), **segments).last_hidden_state, response


def level(heads: Any, states: torch.Tensor, response: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
    """Logits of a mechanism's level, (B, 3), of `states_of`."""
    from torch.nn.functional import dropout as drop

    mean = (states * response[..., None]).sum(1) / response.sum(1, keepdim=True)
    hidden = heads["dense"](drop(mean, dropout, heads.training)).relu()
    return heads["out_proj"](drop(hidden, dropout, heads.training))


def rationale(heads: Any, states: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
    """Logits of a mechanism's rationale, (B, T, 2), from the states (B, T, D)."""
    from torch.nn.functional import dropout as drop

    return heads["rationale_classifier"](drop(states, dropout, heads.training))


def level_logits(
    classifier: CrossEncoder, seekers: Sequence[str], responses: Sequence[str], batch_size: int = BATCH_SIZE
) -> dict[str, torch.Tensor]:
    """Logits of the levels for each mechanism, (N, 3), on the CPU: one pass for each distinct pair of texts.

    Raises:
        ValueError: the numbers of posts and replies differ.
    """
    import torch

    texts = list(zip(seekers, responses, strict=True))
    tokens = tokens_of(classifier, [*seekers, *responses])
    pairs = [pair_of(classifier.tokenizer, tokens[post], tokens[response]) for post, response in texts]
    # The composition of a batch changes rounding: sorting makes it independent of the order of the replies.
    distinct = sorted(set(pairs))
    logits = {mechanism: torch.empty(len(distinct), LEVELS) for mechanism in MECHANISMS}
    with torch.no_grad():
        for batch in batches_by_count([len(pair.ids) for pair in distinct], batch_size):
            states, response = states_of(classifier.model, [distinct[i] for i in batch])
            for mechanism, values in logits.items():
                values[batch] = level(classifier.model[mechanism], states, response).cpu()
    places = {pair: i for i, pair in enumerate(distinct)}
    rows = [places[pair] for pair in pairs]
    return {mechanism: values[rows] for mechanism, values in logits.items()}
