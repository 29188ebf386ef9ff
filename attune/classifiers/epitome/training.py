"""Training and measuring bi-encoders on annotated pairs, one for each mechanism (Sharma et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.classifiers.common.batching import BATCH_SIZE, pad
from attune.classifiers.common.fit import fit
from attune.classifiers.epitome.agreement import quality
from attune.classifiers.epitome.annotations import IGNORED, Annotations, Encoded, encode
from attune.classifiers.epitome.levels import states_of, tokens_of
from attune.classifiers.epitome.model import (
    MECHANISMS,
    Classifiers,
    attention_mask,
    encoder_of,
    frozen_layers,
    heads,
    layers_of,
    run_layers,
)
from attune.compute.batching import batches_by_count
from attune.compute.process import autocast

if TYPE_CHECKING:
    import torch
    from torch import nn

    from attune.config.schema import Epitome, Hardware


def train_all(
    classifiers: Classifiers,
    annotations: Annotations,
    settings: Epitome,
    hardware: Hardware,
    seed: int,
    checkpoints: Path,
) -> None:
    """Train the classifier of each mechanism in place.

    Args:
        classifiers: untrained.
        annotations: of the train split.
        settings: hyperparameters.
        hardware: device and precision.
        seed: of order and dropout.
        checkpoints: gets a folder for each mechanism.
    """
    with autocast(hardware):
        states = _states_of_posts(classifiers, annotations)
    for mechanism, model in classifiers.models.items():
        examples = encode(classifiers, annotations[mechanism])
        train(model, examples, states[mechanism], settings, hardware, f"{seed}:{mechanism}", checkpoints / mechanism)


def measure_all(classifiers: Classifiers, annotations: Annotations) -> dict[str, dict[str, float]]:
    """`measure` of the classifier of each mechanism."""
    states = _states_of_posts(classifiers, annotations)
    return {
        mechanism: measure(model, encode(classifiers, annotations[mechanism]), states[mechanism])
        for mechanism, model in classifiers.models.items()
    }


def _states_of_posts(classifiers: Classifiers, annotations: Annotations) -> dict[str, dict[str, torch.Tensor]]:
    """`post_states` of all posts for each mechanism, once for classifiers that share a seeker encoder."""
    posts = [row.seeker_post for mechanism in MECHANISMS for row in annotations[mechanism]]
    seekers = {mechanism: encoder_of(model, "seeker_encoder") for mechanism, model in classifiers.models.items()}
    distinct = {id(seeker): seeker for seeker in seekers.values()}
    states = {key: post_states(classifiers, seeker, posts) for key, seeker in distinct.items()}
    return {mechanism: states[id(seeker)] for mechanism, seeker in seekers.items()}


def post_states(classifiers: Classifiers, seeker: Any, posts: Sequence[str]) -> dict[str, torch.Tensor]:
    """States (S, D) of each distinct post. The seeker encoder is frozen, so they are computed once for all epochs."""
    import torch

    distinct = list(dict.fromkeys(posts))
    with torch.no_grad():
        states = states_of(seeker.eval(), tokens_of(classifiers, distinct), BATCH_SIZE, len(layers_of(seeker)))
    return dict(zip(distinct, states, strict=True))


def _frozen_states(model: nn.ModuleDict, examples: Sequence[Encoded]) -> list[torch.Tensor]:
    """States (T, D) of the responses after the frozen layers, for all epochs; empty if no layer is frozen."""
    import torch

    if not (frozen := frozen_layers(model)):
        return []
    with torch.no_grad():
        responder = encoder_of(model, "responder_encoder").eval()
        return states_of(responder, [example.ids for example in examples], BATCH_SIZE, frozen)


def train(
    model: nn.ModuleDict,
    examples: Sequence[Encoded],
    posts: Mapping[str, torch.Tensor],
    settings: Epitome,
    hardware: Hardware,
    seed: str,
    checkpoint: Path,
) -> None:
    """Train responder encoder, attention and heads; leaves `model` in eval mode, with the weights of the last epoch.

    The best epoch on valid is not chosen: valid has some 150 pairs, whose accuracy moves by three points by chance, and
    by the last epoch the learning rate has decayed to zero.

    Args:
        model: of `make_classifier`.
        examples: of the train split.
        posts: states (S, D) of each seeker post.
        settings: hyperparameters.
        hardware: device and precision.
        seed: of order and dropout, as in `fit`.
        checkpoint: folder to resume from, as in `fit`.
    """
    with autocast(hardware):
        states = _frozen_states(model, examples)
    fit(
        model,
        weights_and_rates(model, model["responder_encoder"], settings),
        [len(example.ids) for example in examples],
        lambda batch: _loss(model, [examples[i] for i in batch], [states[i] for i in batch if states], posts, settings),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        hardware=hardware,
        seed=seed,
        checkpoint=checkpoint,
    )


def weights_and_rates(
    model: nn.ModuleDict, encoder: nn.Module, settings: Epitome
) -> list[tuple[list[nn.Parameter], float]]:
    """The trained weights of `encoder`, a part of `model`, and those of its heads, each with their learning rate."""
    inside = {id(p) for p in encoder.parameters()}
    trained = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("norm.")]
    groups = [[p for p in trained if (id(p) in inside) is in_encoder] for in_encoder in (True, False)]
    return list(zip(groups, (settings.learning_rate, settings.head_learning_rate), strict=True))


def measure(model: nn.ModuleDict, examples: Sequence[Encoded], posts: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """`quality` of a classifier on annotated examples."""
    import torch

    levels, rationales = [0] * len(examples), [[0]] * len(examples)
    states = _frozen_states(model, examples)
    with torch.no_grad():
        for batch in batches_by_count([len(example.ids) for example in examples], BATCH_SIZE):
            selected = [examples[i] for i in batch]
            level, rationale, _ = _run(model, selected, [states[i] for i in batch if states], posts, 0.0)
            predictions = zip(batch, level.argmax(-1).tolist(), rationale.argmax(-1).tolist(), strict=True)
            for i, predicted_level, predicted_rationale in predictions:
                levels[i], rationales[i] = predicted_level, predicted_rationale
    truth = [example.level for example in examples]
    return quality(truth, levels, [example.rationale for example in examples], rationales)


def _run(
    model: nn.ModuleDict,
    examples: Sequence[Encoded],
    frozen_states: Sequence[torch.Tensor],
    posts: Mapping[str, torch.Tensor],
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of level (B, 3) and rationale (B, T, 2), and the attention mask (B, T)."""
    import torch

    encoder = encoder_of(model, "responder_encoder")
    ids, mask = pad([torch.tensor(example.ids, device=encoder.device) for example in examples])
    seeker, seeker_mask = pad([posts[example.seeker_post] for example in examples])
    states = pad(frozen_states)[0] if frozen_states else encoder.embeddings(input_ids=ids)
    states = run_layers(layers_of(encoder)[frozen_layers(model) :], states, attention_mask(encoder, mask))
    return *heads(model, states, seeker, seeker_mask, dropout), mask


def _loss(
    model: nn.ModuleDict,
    examples: Sequence[Encoded],
    frozen_states: Sequence[torch.Tensor],
    posts: Mapping[str, torch.Tensor],
    settings: Epitome,
) -> torch.Tensor:
    """Weighted sum of two cross-entropies: of the level, a mean over examples, and of the rationale, over tokens."""
    import torch

    level, rationale, mask = _run(model, examples, frozen_states, posts, settings.dropout)
    labels, _ = pad([torch.tensor(example.rationale, device=level.device) for example in examples])
    labels = labels.masked_fill(~mask, IGNORED)
    levels = torch.tensor([example.level for example in examples], device=level.device)
    return settings.lambda_level * labelled_loss(level, levels) + settings.lambda_rationale * labelled_loss(
        rationale.flatten(0, 1), labels.flatten()
    )


def labelled_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (N, C), a mean over the labels (N,) that are not IGNORED; 0 if there is none."""
    from torch.nn.functional import cross_entropy

    if not (labels != IGNORED).any():
        return logits.float().sum() * 0.0
    return cross_entropy(logits.float(), labels, ignore_index=IGNORED)
