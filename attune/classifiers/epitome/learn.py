"""The three classifiers of empathy: trained on annotated pairs, or taken from published checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.classifiers.common.sources import trained_on
from attune.classifiers.epitome.annotations import (
    FILES,
    Annotation,
    encode,
    rationale_spans,
    read_annotations,
    split_of,
)
from attune.classifiers.epitome.model import MECHANISMS, Classifiers
from attune.runtime.imports import import_transformers

if TYPE_CHECKING:
    from attune.config.schema import Epitome, Hardware, Params

Annotations = Mapping[str, Sequence[Annotation]]


def learn(params: Params, checkpoints: Path, target: Path) -> dict[str, float]:
    """Train the classifiers, unless they are published ones, and write `target`.

    Returns:
        The metrics of `train_and_measure`.

    Raises:
        ModelError: as `read_annotations` and `load_published`.
    """
    import_transformers()
    import torch

    from attune.classifiers.epitome.files import PUBLISHED, save
    from attune.models.encoder import encoder_signature, load_encoder
    from attune.models.weights import file_hash

    settings, folder = params.epitome, Path(params.epitome.data)
    annotations = {mechanism: read_annotations(folder / file) for mechanism, file in FILES.items()}
    # Published files of an encoder may lack the pooler, whose weights are then random; it is not used here.
    torch.manual_seed(params.seed)
    encoder, tokenizer = load_encoder(params.encoder, params.hardware)
    classifiers = Classifiers(make_models(encoder, settings, params.seed), tokenizer, settings.max_length)
    metrics = train_and_measure(classifiers, annotations, settings, params.hardware, params.seed, checkpoints)
    if published := settings.published:
        # Of the encoder only architecture and tokenizer are used.
        hashes = {f"sha256_{short}": file_hash(published / PUBLISHED[name]) for name, short in MECHANISMS.items()}
        origin = {"classifiers": str(published), "encoder": params.encoder.name, **hashes}
    else:
        origin = {"classifiers": trained_on(folder, params.corpus.name), **encoder_signature(params.encoder)}
    save(classifiers, origin | describe(annotations), target)
    return metrics


def make_models(encoder: Any, settings: Epitome, seed: int) -> dict[str, Any]:
    """The classifier of each mechanism: the published one if `settings.published`, else an untrained one.

    Untrained classifiers start from the same random heads. They share `encoder`, frozen, as their seeker encoder and as
    the frozen layers of their responder encoders.
    """
    import torch

    from attune.classifiers.epitome.files import load_published
    from attune.classifiers.epitome.model import make_classifier

    if settings.published:
        return load_published(settings.published, encoder)
    models = {}
    for mechanism in MECHANISMS:
        torch.manual_seed(seed)
        models[mechanism] = make_classifier(encoder, copy.deepcopy(encoder), settings.frozen_layers)
    return models


def train_and_measure(
    classifiers: Classifiers,
    annotations: Annotations,
    settings: Epitome,
    hardware: Hardware,
    seed: int,
    checkpoints: Path,
) -> dict[str, float]:
    """Train the classifiers, unless they are published ones, and measure them on the test split.

    Args:
        classifiers: of `make_models`; trained in place.
        annotations: of each mechanism.
        settings: hyperparameters.
        hardware: device and precision.
        seed: of order and dropout.
        checkpoints: folder for checkpoints, with a folder for each mechanism.

    Returns:
        `measure` on the test split and the accuracy on valid, for each mechanism: `er_accuracy`.
    """
    from attune.classifiers.epitome.model import encoder_of
    from attune.classifiers.epitome.training import measure, post_states, train

    # States of all seeker posts by seeker encoder: the classifiers often share one.
    states_by_encoder: dict[int, dict[str, Any]] = {}
    metrics: dict[str, float] = {}
    posts = [annotation.seeker_post for mechanism in MECHANISMS for annotation in annotations[mechanism]]
    for mechanism, model in classifiers.models.items():
        seeker = encoder_of(model, "seeker_encoder")
        if id(seeker) not in states_by_encoder:
            states_by_encoder[id(seeker)] = post_states(classifiers, seeker, posts, hardware)
        states = states_by_encoder[id(seeker)]
        splits = {
            split: encode(classifiers, [row for row in annotations[mechanism] if split_of(row.seeker_post) == split])
            for split in ("train", "valid", "test")
        }
        if not settings.published:
            train(model, splits["train"], states, settings, hardware, f"{seed}:{mechanism}", checkpoints / mechanism)
        quality = measure(model, splits["test"], states, hardware)
        quality["valid_accuracy"] = measure(model, splits["valid"], states, hardware)["accuracy"]
        metrics |= {f"{MECHANISMS[mechanism]}_{name}": value for name, value in quality.items()}
    return metrics


def describe(annotations: Annotations) -> dict[str, str]:
    """Counts of pairs by split, of rationales, and of rationales that do not occur in their response."""
    splits = [split_of(row.seeker_post) for row in annotations["emotional_reactions"]]
    rows = [row for mechanism in MECHANISMS for row in annotations[mechanism]]
    missing = sum(len(row.rationales) - len(rationale_spans(row)) for row in rows)
    return {f"{split}_pairs": str(splits.count(split)) for split in ("train", "valid", "test")} | {
        "rationales": str(sum(len(row.rationales) for row in rows)),
        "rationales_not_in_response": str(missing),
    }
