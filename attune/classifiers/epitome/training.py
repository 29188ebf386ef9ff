"""How the EPITOME classifiers learn from annotated pairs, and how good they are (Sharma et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.classifiers.common.classifier import BATCH, accuracy, f1, fit, macro_f1, pad
from attune.classifiers.epitome.annotations import IGNORED, Encoded
from attune.classifiers.epitome.levels import states_of, tokens_of
from attune.classifiers.epitome.model import LEVELS, Classifiers, encoder_of, frozen_layers, heads, layers_of, through
from attune.compute.batching import batches_by_count
from attune.compute.process import autocast

if TYPE_CHECKING:
    import torch
    from torch import nn

    from attune.config.schema import Epitome, Hardware


def post_states(
    classifiers: Classifiers, seeker: Any, posts: Sequence[str], hardware: Hardware
) -> dict[str, torch.Tensor]:
    """States (S, D) of each distinct post under a seeker encoder, which is never trained: once for all epochs."""
    import torch

    distinct = list(dict.fromkeys(posts))
    with torch.no_grad(), autocast(hardware):
        states = states_of(seeker.eval(), tokens_of(classifiers, distinct), BATCH, len(layers_of(seeker)))
    return dict(zip(distinct, states, strict=True))


def _below(model: nn.ModuleDict, examples: Sequence[Encoded], hardware: Hardware) -> list[torch.Tensor]:
    """States (T, D) of the responses behind the frozen layers, once for all epochs; none where nothing is frozen."""
    import torch

    if not (frozen := frozen_layers(model)):
        return []
    with torch.no_grad(), autocast(hardware):
        responder = encoder_of(model, "responder_encoder").eval()
        return states_of(responder, [one.ids for one in examples], BATCH, frozen)


def train(
    model: nn.ModuleDict,
    examples: Sequence[Encoded],
    posts: Mapping[str, torch.Tensor],
    settings: Epitome,
    hardware: Hardware,
    seed: str,
    checkpoint: Path,
) -> None:
    """Train responder encoder, attention and heads; `model` is left in eval mode, with the weights of the last epoch.

    The last and not the best on the valid part: that has some 150 pairs, whose accuracy moves by three points from
    chance alone, and the learning rate has gone to zero by then.

    Args:
        model: of `make_classifier`.
        examples: to learn from.
        posts: states of the seeker encoder for each seeker post, (S, D).
        settings: hyperparameters.
        hardware: device and precision.
        seed: keys order and dropout of each epoch, which therefore hang on nothing that came before.
        checkpoint: folder of what to go on from, of `fit`.
    """
    encoder = {id(p) for p in model["responder_encoder"].parameters()}
    trained = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("norm.")]
    sides = [[p for p in trained if (id(p) in encoder) is side] for side in (True, False)]
    below = _below(model, examples, hardware)
    fit(
        model,
        list(zip(sides, (settings.learning_rate, settings.head_learning_rate), strict=True)),
        [len(one.ids) for one in examples],
        lambda batch: _loss(model, [examples[i] for i in batch], [below[i] for i in batch if below], posts, settings),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        hardware=hardware,
        seed=seed,
        checkpoint=checkpoint,
    )


def measure(
    model: nn.ModuleDict, examples: Sequence[Encoded], posts: Mapping[str, torch.Tensor], hardware: Hardware
) -> dict[str, float]:
    """How good a classifier is on examples, in percent; all 0 without any.

    Returns:
        accuracy and macro-F1 of the level, F1 of rationale tokens, and for comparison the first two of an answer that
        is always the most frequent level.
    """
    import torch

    levels, tokens = [0] * len(examples), [[0]] * len(examples)
    below = _below(model, examples, hardware)
    with torch.no_grad(), autocast(hardware):
        for batch in batches_by_count([len(one.ids) for one in examples], BATCH):
            some, states = [examples[i] for i in batch], [below[i] for i in batch if below]
            level, rationale, _ = _run(model, some, states, posts, 0.0)
            for i, one, row in zip(batch, level.argmax(-1).tolist(), rationale.argmax(-1).tolist(), strict=True):
                levels[i], tokens[i] = one, row
    truth = [one.level for one in examples]
    majority = [max(range(LEVELS), key=truth.count)] * len(truth)
    pairs = [
        (guess, label)
        for one, row in zip(examples, tokens, strict=True)
        for guess, label in zip(row, one.rationale, strict=False)
        if label != IGNORED
    ]
    return {
        "accuracy": accuracy(truth, levels),
        "macro_f1": macro_f1(truth, levels),
        "rationale_f1": f1([label for _, label in pairs], [guess for guess, _ in pairs], 1),
        "majority_accuracy": accuracy(truth, majority),
        "majority_macro_f1": macro_f1(truth, majority),
    }


def _run(
    model: nn.ModuleDict,
    examples: Sequence[Encoded],
    below: Sequence[torch.Tensor],
    posts: Mapping[str, torch.Tensor],
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of level (B, 3) and rationale (B, T, 2), and the attention mask (B, T)."""
    import torch

    encoder = encoder_of(model, "responder_encoder")
    ids, mask = pad([torch.tensor(one.ids, device=encoder.device) for one in examples])
    seeker, seeker_mask = pad([posts[one.seeker_post] for one in examples])
    states = pad(below)[0] if below else encoder.embeddings(input_ids=ids)
    states = through(layers_of(encoder)[frozen_layers(model) :], states, mask)
    return *heads(model, states, seeker, seeker_mask, dropout), mask


def _loss(
    model: nn.ModuleDict,
    examples: Sequence[Encoded],
    below: Sequence[torch.Tensor],
    posts: Mapping[str, torch.Tensor],
    settings: Epitome,
) -> torch.Tensor:
    import torch
    from torch.nn.functional import cross_entropy

    level, rationale, mask = _run(model, examples, below, posts, settings.dropout)
    labels, _ = pad([torch.tensor(one.rationale, device=level.device) for one in examples])
    labels = labels.masked_fill(~mask, IGNORED)
    levels = torch.tensor([one.level for one in examples], device=level.device)
    on_level = cross_entropy(level.float(), levels)
    on_rationale = cross_entropy(rationale.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    return settings.lambda_level * on_level + settings.lambda_rationale * on_rationale
