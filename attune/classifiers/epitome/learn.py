"""The classifiers of empathy: trained on annotated pairs and published levels, or taken from published checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.classifiers.common.sources import trained_on
from attune.classifiers.epitome.annotations import (
    FILES,
    Annotation,
    Annotations,
    rationale_spans,
    read_annotations,
    split_of,
)
from attune.classifiers.epitome.model import MECHANISMS, Classifiers
from attune.classifiers.epitome.published_levels import PREFIX, Levelled, read_levels, together
from attune.runtime.imports import import_transformers
from attune.runtime.io import sha256_of

if TYPE_CHECKING:
    from attune.config.schema import Epitome, Hardware, Params


def learn(params: Params, checkpoints: Path, target: Path) -> dict[str, float]:
    """Train the classifiers, unless they are published ones, and write `target`.

    Returns:
        The metrics of `train_and_measure`.

    Raises:
        DataError: as `read_levels`.
        ModelError: as `read_annotations` and `load_published`.
    """
    import_transformers()
    import torch

    from attune.classifiers.epitome.files import save
    from attune.models.encoder import load_encoder

    settings, folder = params.epitome, Path(params.epitome.data)
    annotations = {mechanism: read_annotations(folder / file) for mechanism, file in FILES.items()}
    levelled = read_levels(settings.level_corpus) if settings.level_corpus else []
    # Published files of an encoder may lack the pooler, whose weights are then random; it is not used here.
    torch.manual_seed(settings.seed)
    encoder, tokenizer = load_encoder(params.encoder, params.hardware)
    classifiers = Classifiers(make_models(encoder, settings, settings.seed), tokenizer, settings.max_length)
    metrics, details = train_and_measure(
        classifiers, annotations, levelled, settings, params.hardware, settings.seed, checkpoints
    )
    save(classifiers, origin(params) | describe(annotations, levelled) | details, target)
    return metrics


def origin(params: Params) -> dict[str, str]:
    """Where the classifiers come from, and what numbers by them compare with, for signatures."""
    from attune.classifiers.epitome.files import PUBLISHED
    from attune.models.encoder import encoder_signature
    from attune.models.weights import file_hash

    settings = params.epitome
    if published := settings.published:
        # Of the encoder only architecture and tokenizer are used.
        hashes = {f"sha256_{short}": file_hash(published / PUBLISHED[name]) for name, short in MECHANISMS.items()}
        compared = "numbers by the same checkpoint files"
        return {"classifiers": str(published), "compares_with": compared, "encoder": params.encoder.name, **hashes}
    learnt = trained_on(Path(settings.data), params.corpus.name)
    if not settings.level_corpus:
        compared = "numbers by classifiers with the same signature alone"
        return {"classifiers": learnt, "compares_with": compared, **encoder_signature(params.encoder)}
    files = sorted(settings.level_corpus.glob(f"{PREFIX}*.csv"))
    return {
        "classifiers": f"{learnt} and the published levels of {settings.level_corpus.name}",
        "compares_with": "the published levels, as closely as er_, ip_ and ex_published_kappa say",
        **encoder_signature(params.encoder),
        **{f"levels_sha256_{file.stem}": sha256_of(file) for file in files},
    }


def make_models(encoder: Any, settings: Epitome, seed: int) -> dict[str, Any]:
    """The bi-encoder of each mechanism: the published one if `settings.published`, else an untrained one.

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
    levelled: Sequence[Levelled],
    settings: Epitome,
    hardware: Hardware,
    seed: int,
    checkpoints: Path,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Train the classifiers on the train split, unless they are published ones, and measure them on the test split.

    Args:
        classifiers: with the models of `make_models`; trained in place.
        annotations: of each mechanism.
        levelled: replies with published levels; none: the annotations are the only corpus.
        settings: hyperparameters.
        hardware: device and precision of training; what is measured is in fp32.
        seed: of order and dropout.
        checkpoints: folder for checkpoints.

    Returns:
        For each mechanism `quality` on the annotated test pairs and the accuracy on valid (`er_accuracy`). With
        published levels the metrics of `agreement.summary` on the test dialogues, and kappa on valid. And what
        explains these: `agreement` and `differences`.
    """
    from attune.classifiers.epitome import training

    if not settings.published:
        training.train_all(classifiers, corpus(annotations, levelled), settings, hardware, seed, checkpoints)
    test, valid = (training.measure_all(classifiers, of_split(annotations, split)) for split in ("test", "valid"))
    metrics: dict[str, float] = {}
    for mechanism, short in MECHANISMS.items():
        quality = test[mechanism] | {"valid_accuracy": valid[mechanism]["accuracy"]}
        metrics |= {f"{short}_{name}": value for name, value in quality.items()}
    if not levelled:
        return metrics, {}
    found, details = agree(classifiers, levelled)
    return metrics | found, details


def corpus(annotations: Annotations, levelled: Sequence[Levelled]) -> dict[str, list[Annotation]]:
    """What each mechanism learns from: the train splits of the annotations and of the replies with published levels."""
    return together(of_split(annotations, "train"), [row for row in levelled if row.split == "train"])


def of_split(annotations: Annotations, split: str) -> dict[str, list[Annotation]]:
    """The annotations of a split."""
    return {name: [row for row in rows if split_of(row.seeker_post) == split] for name, rows in annotations.items()}


def agree(classifiers: Classifiers, levelled: Sequence[Levelled]) -> tuple[dict[str, float], dict[str, Any]]:
    """Agreement with the published levels of held-out dialogues, as metrics, and its details."""
    from attune.classifiers.epitome.agreement import ALL, agreement, differences, summary
    from attune.classifiers.epitome.levels import levels_of

    held_out = {split: [row for row in levelled if row.split == split] for split in ("test", "valid")}
    ours = {
        split: levels_of(classifiers, [row.seeker_post for row in rows], [row.response_post for row in rows])
        for split, rows in held_out.items()
    }
    found, valid = (agreement(held_out[split], ours[split]) for split in ("test", "valid"))
    gaps = differences(held_out["test"], ours["test"])
    metrics = summary(found, gaps)
    metrics |= {f"{short}_published_valid_kappa": valid[short][ALL]["kappa"] for short in valid}
    return metrics, {"agreement": found, "differences": gaps}


def describe(annotations: Annotations, levelled: Sequence[Levelled]) -> dict[str, str]:
    """Counts of pairs by split, of rationales, of rationales not in their response, and of replies with levels."""
    splits = [split_of(row.seeker_post) for row in annotations["emotional_reactions"]]
    rows = [row for mechanism in MECHANISMS for row in annotations[mechanism]]
    marked = [len(row.rationales or ()) for row in rows]
    missing = sum(marked) - sum(len(rationale_spans(row)) for row in rows)
    of_levels = [row.split for row in levelled]
    counts = {f"{split}_pairs": str(splits.count(split)) for split in ("train", "valid", "test")}
    counts |= {f"{split}_levelled": str(of_levels.count(split)) for split in ("train", "valid", "test") if levelled}
    return counts | {"rationales": str(sum(marked)), "rationales_not_in_response": str(missing)}
