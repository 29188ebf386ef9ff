"""Training and measuring a cross-encoder on pairs of posts, of which each has labels of one mechanism or of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from attune.classifiers.common.batching import BATCH_SIZE, pad
from attune.classifiers.common.fit import fit
from attune.classifiers.epitome.agreement import quality
from attune.classifiers.epitome.annotations import IGNORED, Annotation, Annotations, token_labels
from attune.classifiers.epitome.cross_encoder import (
    CrossEncoder,
    Pair,
    level,
    pair_of,
    rationale,
    states_of,
    tokens_of,
)
from attune.classifiers.epitome.model import MECHANISMS
from attune.classifiers.epitome.training import labelled_loss, weights_and_rates
from attune.compute.batching import batches_by_count

if TYPE_CHECKING:
    import torch
    from torch import nn

    from attune.config.schema import Epitome, Hardware

NAME = "cross_encoder"


@dataclass
class Labelled:
    """A pair of posts, the levels of those mechanisms that it has, and T labels of its tokens for each of them.

    A label is 1 inside a rationale, 0 outside, IGNORED for what is not the response, or not annotated.
    """

    pair: Pair
    levels: dict[str, int] = field(default_factory=dict)
    rationales: dict[str, list[int]] = field(default_factory=dict)


def join(classifier: CrossEncoder, annotations: Annotations) -> list[Labelled]:
    """One example for each pair of posts, with what all mechanisms say of it, in the order of their first mention.

    A mechanism may say several things of the same two texts: these are as many examples.
    """
    rows = [(mechanism, row) for mechanism in MECHANISMS for row in annotations[mechanism]]
    tokens = tokens_of(classifier, [text for _, row in rows for text in (row.seeker_post, row.response_post)])
    seen: Counter[tuple[str, str, str]] = Counter()
    joined: dict[tuple[str, str, int], Labelled] = {}
    for mechanism, row in rows:
        texts = (row.seeker_post, row.response_post)
        key = (*texts, seen[mechanism, *texts])
        seen[mechanism, *texts] += 1
        if key not in joined:
            joined[key] = Labelled(pair_of(classifier.tokenizer, *(tokens[text] for text in texts)))
        example = joined[key]
        example.levels[mechanism] = row.level
        example.rationales[mechanism] = _labels(row, example.pair, tokens[row.response_post].offsets)
    return list(joined.values())


def _labels(row: Annotation, pair: Pair, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The labels of all tokens of a pair; `offsets` are those of the response."""
    inside = token_labels(row, offsets, [0] * len(offsets))
    return [*[IGNORED] * pair.response, *inside, IGNORED]


def train_all(
    classifier: CrossEncoder,
    annotations: Annotations,
    settings: Epitome,
    hardware: Hardware,
    seed: int,
    checkpoints: Path,
) -> None:
    """Train encoder and heads in place; leaves the model in eval mode, with the weights of the last epoch.

    Args:
        classifier: untrained.
        annotations: of the train split; pairs of all mechanisms and corpora are mixed in batches.
        settings: hyperparameters.
        hardware: device and precision.
        seed: of order and dropout.
        checkpoints: gets the folder to resume from, as in `fit`.
    """
    model, examples = classifier.model, join(classifier, annotations)
    fit(
        model,
        weights_and_rates(model, model["encoder"], settings),
        [len(example.pair.ids) for example in examples],
        lambda batch: loss(model, [examples[i] for i in batch], settings),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        hardware=hardware,
        seed=f"{seed}:{NAME}",
        checkpoint=checkpoints / NAME,
    )


def loss(model: nn.ModuleDict, examples: Sequence[Labelled], settings: Epitome) -> torch.Tensor:
    """The sum over mechanisms of two weighted cross-entropies, of the level and of the rationale.

    Each is a mean over the examples, or tokens, of the batch that have the label; 0 where none has it.
    """
    import torch

    states, response = states_of(model, [example.pair for example in examples])
    total = states.new_zeros((), dtype=torch.float32)
    for mechanism in MECHANISMS:
        heads = model[mechanism]
        levels = [example.levels.get(mechanism, IGNORED) for example in examples]
        rows = [example.rationales.get(mechanism, [IGNORED] * len(example.pair.ids)) for example in examples]
        labels = pad([torch.tensor(row, device=states.device) for row in rows])[0].masked_fill(~response, IGNORED)
        guesses = level(heads, states, response, settings.dropout)
        of_levels = labelled_loss(guesses, torch.tensor(levels, device=states.device))
        of_tokens = labelled_loss(rationale(heads, states, settings.dropout).flatten(0, 1), labels.flatten())
        total = total + settings.lambda_level * of_levels + settings.lambda_rationale * of_tokens
    return total


def measure_all(classifier: CrossEncoder, annotations: Annotations) -> dict[str, dict[str, float]]:
    """`quality` of the heads of each mechanism on annotated pairs."""
    import torch

    examples = join(classifier, annotations)
    levels = {mechanism: [0] * len(examples) for mechanism in MECHANISMS}
    tokens = {mechanism: [[0]] * len(examples) for mechanism in MECHANISMS}
    with torch.no_grad():
        for batch in batches_by_count([len(example.pair.ids) for example in examples], BATCH_SIZE):
            states, response = states_of(classifier.model, [examples[i].pair for i in batch])
            for mechanism in MECHANISMS:
                heads = classifier.model[mechanism]
                guesses = level(heads, states, response).argmax(-1).tolist()
                marks = rationale(heads, states).argmax(-1).tolist()
                for i, guess, row in zip(batch, guesses, marks, strict=True):
                    levels[mechanism][i], tokens[mechanism][i] = guess, row
    measured = {}
    for mechanism in MECHANISMS:
        known = [i for i, example in enumerate(examples) if mechanism in example.levels]
        measured[mechanism] = quality(
            [examples[i].levels[mechanism] for i in known],
            [levels[mechanism][i] for i in known],
            [examples[i].rationales[mechanism] for i in known],
            [tokens[mechanism][i] for i in known],
        )
    return measured
