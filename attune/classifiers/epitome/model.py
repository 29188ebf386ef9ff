"""EPITOME: how strongly a reply expresses empathy by each of three mechanisms (Sharma et al. 2020).

A classifier a mechanism. A seeker encoder, which is not trained, and a responder encoder turn the two posts into states
S and R; single-head attention from R to S adds to R what the reply takes up from the post; a head on the first token
gives the level (0 none, 1 weak, 2 strong), a head on every token says whether it belongs to the rationale:

    R' = R + out(softmax(q(R) k(S)ᵀ / √d) v(S))        level = out_proj(relu(dense(R'₀)))        rationale = W R'

Parameters are named as in the published checkpoints, so that both kinds of weights fit the same model.
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

# As parameters, files and columns call them, and as metrics do.
MECHANISMS = {"emotional_reactions": "er", "interpretations": "ip", "explorations": "ex"}
LEVELS = 3


@dataclass(frozen=True)
class Classifiers:
    """The classifier of each mechanism, and what they share: the tokenizer and the cut-off in tokens.

    `models` often have one seeker encoder between them, as the same object; its states are then computed once.
    """

    models: Mapping[str, nn.ModuleDict]
    tokenizer: Tokenizer
    max_length: int


def make_classifier(seeker: PreTrainedModel, responder: PreTrainedModel, frozen_layers: int = 0) -> nn.ModuleDict:
    """A classifier whose attention and heads are random (torch's seed).

    Args:
        seeker: its encoder of seeker posts, frozen from here on.
        responder: its encoder of responses, to be trained; of the same architecture, another object than `seeker`.
        frozen_layers: of the responder encoder, from the embeddings up; where there are any, they are the seeker's, as
            the same objects, so that what they compute is computed once for all mechanisms.

    Raises:
        ModelError: no layer would be left to train.
    """
    import torch
    from torch import nn

    width, kind = responder.config.hidden_size, responder.base_model_prefix
    if frozen_layers >= responder.config.num_hidden_layers:
        raise ModelError(
            f"epitome.frozen_layers = {frozen_layers} leaves nothing to train: the encoder has "
            f"{responder.config.num_hidden_layers} layers"
        )
    responder.requires_grad_(True)
    if frozen_layers:
        own, frozen = layers_of(responder), layers_of(seeker)
        responder.embeddings = seeker.embeddings
        for i in range(frozen_layers):
            own[i] = frozen[i]

    def linear(*names: str, to: int = width) -> dict[str, nn.Linear]:
        return {name: nn.Linear(width, to) for name in names}

    model = nn.ModuleDict(
        {
            "seeker_encoder": nn.ModuleDict({kind: seeker.requires_grad_(False)}),
            "responder_encoder": nn.ModuleDict({kind: responder}),
            "attn": nn.ModuleDict(linear("q_linear", "k_linear", "v_linear", "out")),
            "empathy_classifier": nn.ModuleDict(linear("dense") | linear("out_proj", to=LEVELS)),
            **linear("rationale_classifier", to=2),
            # In the published layout, and read by nothing, there as here.
            "norm": nn.ParameterDict({"alpha": torch.ones(width), "bias": torch.zeros(width)}),
        }
    )
    for name, parameter in model.named_parameters():
        if "encoder" not in name and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.02)
        elif "encoder" not in name and name != "norm.alpha":
            nn.init.zeros_(parameter)
    return model.to(responder.device)


def encoder_of(model: nn.ModuleDict, side: str) -> Any:
    """The transformers model below `seeker_encoder` or `responder_encoder`."""
    (encoder,) = model[side].children()
    return encoder


def layers_of(encoder: PreTrainedModel) -> Any:
    """The transformer blocks of an encoder of BERT's family, as a ModuleList."""
    stack: Any = encoder.encoder
    return stack.layer


def frozen_layers(model: nn.ModuleDict) -> int:
    """How many of the responder encoder's first layers are the seeker encoder's own, the same objects."""
    seeker, responder = encoder_of(model, "seeker_encoder"), encoder_of(model, "responder_encoder")
    if responder.embeddings is not seeker.embeddings:
        return 0
    pairs = zip(layers_of(seeker), layers_of(responder), strict=True)
    return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))


def through(layers: Sequence[Any], states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """States (B, T, D) behind some layers of an encoder; `mask` (B, T) is true where a token is."""
    for layer in layers:
        states = layer(states, mask[:, None, None, :])
    return states


def first_through(layer: Any, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What one more layer makes of the first tokens, (B, 1, D): its queries and its feed-forward for them alone."""
    from torch.nn.functional import scaled_dot_product_attention as attend

    attention, first = layer.attention.self, states[:, :1]
    query, key, value = (
        project(some).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for project, some in ((attention.query, first), (attention.key, states), (attention.value, states))
    )
    mixed = attend(query, key, value, attn_mask=mask[:, None, None, :]).transpose(1, 2).flatten(2)
    return layer.feed_forward_chunk(layer.attention.output(mixed, first))


def heads(
    model: nn.ModuleDict, states: torch.Tensor, seeker: torch.Tensor, seeker_mask: torch.Tensor, dropout: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and both heads.

    Args:
        model: the classifier.
        states: of the responder encoder, (B, T, D); for the level alone, the first token's (B, 1, D).
        seeker: states of the seeker encoder, (B, S, D).
        seeker_mask: true where a seeker token is, false where padding is, (B, S).
        dropout: probability, in training.

    Returns:
        Logits of the level, (B, 3), and of the rationale, (B, T, 2).
    """
    from torch.nn.functional import dropout as drop

    parts: Any = model
    attn, head = parts["attn"], parts["empathy_classifier"]
    scores = attn["q_linear"](states) @ attn["k_linear"](seeker).mT / math.sqrt(states.shape[-1])
    weights = scores.masked_fill(~seeker_mask[:, None, :], -math.inf).softmax(-1)
    added = attn["out"](weights @ attn["v_linear"](seeker))
    states = states + drop(added, dropout, model.training)
    hidden = head["dense"](drop(states[:, 0], dropout, model.training)).relu()
    level = head["out_proj"](drop(hidden, dropout, model.training))
    return level, parts["rationale_classifier"](drop(states, dropout, model.training))
