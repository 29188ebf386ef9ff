"""EPITOME: levels of empathy in a reply, by three mechanisms (Sharma et al. 2020), as bi-encoders.

There is one classifier for each mechanism. A frozen seeker encoder and a responder
encoder turn the two posts into states S and R. Single-head attention from R to S is added to R. The level head reads
the first token (0 none, 1 weak, 2 strong), the rationale head labels every token as inside or outside the rationale:

    R' = R + out(softmax(q(R) k(S)ᵀ / √d) v(S))        level = out_proj(relu(dense(R'₀)))        rationale = W R'

Parameters are named as in the published checkpoints, so that published weights load into the same model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Name in parameters and files, and in columns and metrics.
MECHANISMS = {"emotional_reactions": "er", "interpretations": "ip", "explorations": "ex"}
LEVELS = 3


@dataclass(frozen=True)
class Classifiers:
    """The classifier of each mechanism, and the tokenizer and the maximum length in tokens that they share.

    `models` usually share one seeker encoder, as the same object; its states are then computed once.
    """

    models: Mapping[str, nn.ModuleDict]
    tokenizer: Tokenizer
    max_length: int


def make_classifier(seeker: PreTrainedModel, responder: PreTrainedModel, frozen_layers: int = 0) -> nn.ModuleDict:
    """A classifier with random attention and heads (torch's seed).

    Args:
        seeker: encoder of seeker posts; frozen here.
        responder: encoder of responses, to be trained; of the same architecture, but another object than `seeker`.
        frozen_layers: of the responder encoder, from the embeddings up. They are replaced by the seeker's layers, the
            same objects, so that their states are computed once for all mechanisms. The position bias of MPNet, which
            all layers read, is then the seeker's, too.

    Raises:
        ModelError: no layer would be left to train.
    """
    import torch
    from torch import nn

    width, kind = responder.config.hidden_size, responder.base_model_prefix
    require_trained_layer(responder, frozen_layers)
    responder.requires_grad_(True)
    if frozen_layers:
        layers, shared = layers_of(responder), layers_of(seeker)
        responder.embeddings = seeker.embeddings
        if has_position_bias(responder):
            _stack_of(responder).relative_attention_bias = _stack_of(seeker).relative_attention_bias
        for i in range(frozen_layers):
            layers[i] = shared[i]

    def linear(*names: str, to: int = width) -> dict[str, nn.Linear]:
        """A linear layer from `width` to `to` units for each name."""
        return {name: nn.Linear(width, to) for name in names}

    model = nn.ModuleDict(
        {
            "seeker_encoder": nn.ModuleDict({kind: seeker.requires_grad_(False)}),
            "responder_encoder": nn.ModuleDict({kind: responder}),
            "attn": nn.ModuleDict(linear("q_linear", "k_linear", "v_linear", "out")),
            "empathy_classifier": nn.ModuleDict(linear("dense") | linear("out_proj", to=LEVELS)),
            **linear("rationale_classifier", to=2),
            # Unused, but part of the published layout.
            "norm": nn.ParameterDict({"alpha": torch.ones(width), "bias": torch.zeros(width)}),
        }
    )
    for name, parameter in model.named_parameters():
        if "encoder" not in name and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.02)
        elif "encoder" not in name and name != "norm.alpha":
            nn.init.zeros_(parameter)
    return model.to(responder.device)


def require_trained_layer(encoder: PreTrainedModel, frozen_layers: int) -> None:
    """Check that some layer of an encoder is left to train.

    Raises:
        ModelError: none is.
    """
    layers = encoder.config.num_hidden_layers
    if frozen_layers >= layers:
        raise ModelError(
            f"epitome.frozen_layers = {frozen_layers} leaves nothing to train: the encoder has {layers} layers"
        )


def encoder_of(model: nn.ModuleDict, side: str) -> Any:
    """The transformers model inside `seeker_encoder` or `responder_encoder`."""
    (encoder,) = model[side].children()
    return encoder


def layers_of(encoder: PreTrainedModel) -> Any:
    """The transformer blocks of an encoder of BERT's family or MPNet, as a ModuleList."""
    return _stack_of(encoder).layer


def _stack_of(encoder: PreTrainedModel) -> Any:
    """The part of an encoder that runs its blocks."""
    return encoder.encoder


def frozen_layers(model: nn.ModuleDict) -> int:
    """The number of first layers that the responder encoder shares with the seeker encoder, as the same objects."""
    seeker, responder = encoder_of(model, "seeker_encoder"), encoder_of(model, "responder_encoder")
    if responder.embeddings is not seeker.embeddings:
        return 0
    pairs = zip(layers_of(seeker), layers_of(responder), strict=True)
    return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))


def has_position_bias(encoder: PreTrainedModel) -> bool:
    """Whether the encoder computes one relative position bias for all of its layers, as MPNet does."""
    return hasattr(_stack_of(encoder), "compute_position_bias")


def attention_mask(encoder: PreTrainedModel, mask: torch.Tensor) -> torch.Tensor:
    """What the layers of `encoder` take as their attention mask.

    Args:
        encoder: of BERT's family, or MPNet.
        mask: (B, T), true for tokens, false for padding.

    Returns:
        (B, 1, 1, T), the mask; of MPNet (B, H, T, T), its position bias for H heads, and -inf at padding. The bias is
        added to the same scores as a mask, so that a layer needs nothing else.
    """
    keys = mask[:, None, None, :]
    if not has_position_bias(encoder):
        return keys
    return _stack_of(encoder).compute_position_bias(mask).masked_fill(~keys, -math.inf)


def run_layers(layers: Sequence[Any], states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """States (B, T, D) after some layers of an encoder; `mask` is of `attention_mask`."""
    for layer in layers:
        output = layer(states, mask)
        # MPNet's layers return a tuple.
        states = output[0] if isinstance(output, tuple) else output
    return states


def run_layer_on_first(layer: Any, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """States of the first tokens, (B, 1, D), after one more layer.

    Equal to `run_layers([layer], ...)[:, :1]`, but in BERT's family queries and feed-forward are computed for the first
    tokens alone.
    """
    from torch.nn.functional import scaled_dot_product_attention

    if not hasattr(layer.attention, "self"):  # MPNet's other layout is not worth a second implementation
        return run_layers([layer], states, mask)[:, :1]
    attention, first = layer.attention.self, states[:, :1]
    query, key, value = (
        project(inputs).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for project, inputs in ((attention.query, first), (attention.key, states), (attention.value, states))
    )
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return layer.feed_forward_chunk(layer.attention.output(attended.transpose(1, 2).flatten(2), first))


def heads(
    model: nn.ModuleDict, states: torch.Tensor, seeker: torch.Tensor, seeker_mask: torch.Tensor, dropout: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, level head and rationale head.

    Args:
        model: of `make_classifier`.
        states: of the responder encoder, (B, T, D); the first token's (B, 1, D) are enough for the level.
        seeker: states of the seeker encoder, (B, S, D).
        seeker_mask: (B, S), true for tokens, false for padding.
        dropout: probability, in training.

    Returns:
        Logits of the level, (B, 3), and of the rationale, (B, T, 2).
    """
    from torch.nn.functional import dropout as drop

    parts: Any = model
    attn, head = parts["attn"], parts["empathy_classifier"]
    scores = attn["q_linear"](states) @ attn["k_linear"](seeker).mT / math.sqrt(states.shape[-1])
    weights = scores.masked_fill(~seeker_mask[:, None, :], -math.inf).softmax(-1)
    attended = attn["out"](weights @ attn["v_linear"](seeker))
    states = states + drop(attended, dropout, model.training)
    hidden = head["dense"](drop(states[:, 0], dropout, model.training)).relu()
    level = head["out_proj"](drop(hidden, dropout, model.training))
    return level, parts["rationale_classifier"](drop(states, dropout, model.training))
