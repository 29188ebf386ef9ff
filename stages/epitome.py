"""Stage `epitome`: the three classifiers of empathy, trained on annotated pairs or taken from published checkpoints.

Writes `models/epitome/` (what `attune.classifiers.epitome.score.score` reads) and `metrics/scorers/epitome.json`: how good each
is on the posts of the test part, which it has not seen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attune.classifiers.epitome.annotations import FILES, Annotation, encode, part_of, rationale_spans, read_annotations
from attune.classifiers.epitome.model import MECHANISMS, Classifiers
from attune.config.params import load
from attune.config.schema import Epitome, Hardware, Params
from attune.runtime.checkpoints import checkpoints
from attune.runtime.errors import reported
from attune.runtime.io import write_json

SAMPLE = Path("data/sample/epitome")
RAW = Path("data/raw/epitome")
TARGET = Path("models/epitome")
METRICS = Path("metrics/scorers/epitome.json")
DIGITS = 2

Annotations = Mapping[str, Sequence[Annotation]]


def make_models(encoder: Any, settings: Epitome, seed: int) -> dict[str, Any]:
    """A classifier for each mechanism: the published one where `settings.checkpoints` is given, else one to train.

    The latter begin with the same random heads, and share `encoder`, frozen, as their seeker encoder and as the frozen
    layers of their responder encoders.
    """
    import torch

    from attune.classifiers.epitome.files import load_published
    from attune.classifiers.epitome.model import make_classifier

    if settings.checkpoints:
        return load_published(Path(settings.checkpoints), encoder)
    models = {}
    for mechanism in MECHANISMS:
        torch.manual_seed(seed)
        models[mechanism] = make_classifier(encoder, copy.deepcopy(encoder), settings.frozen_layers)
    return models


def learn(
    classifiers: Classifiers,
    annotations: Annotations,
    settings: Epitome,
    hardware: Hardware,
    seed: int,
    folder: Path,
) -> dict[str, float]:
    """Train the classifiers, unless they are published ones, and measure them on the test part.

    Args:
        classifiers: of `make_models`; they are trained in place.
        annotations: of each mechanism.
        settings: hyperparameters.
        hardware: device and precision.
        seed: of order and dropout.
        folder: for checkpoints, a folder a mechanism.

    Returns:
        The metrics of all mechanisms, with the mechanism's short name before each.
    """
    from attune.classifiers.epitome.model import encoder_of
    from attune.classifiers.epitome.train import measure, post_states, train

    posts: dict[int, dict[str, Any]] = {}
    metrics: dict[str, float] = {}
    everyone = [one.seeker_post for mechanism in MECHANISMS for one in annotations[mechanism]]
    for mechanism, model in classifiers.models.items():
        seeker = encoder_of(model, "seeker_encoder")
        if id(seeker) not in posts:
            posts[id(seeker)] = post_states(classifiers, seeker, everyone, hardware)
        states, rows = posts[id(seeker)], annotations[mechanism]
        parts = {part: [one for one in rows if part_of(one.seeker_post) == part] for part in ("train", "valid", "test")}
        encoded = {part: encode(classifiers, some) for part, some in parts.items()}
        if not settings.checkpoints:
            key = f"{seed}:{mechanism}"
            train(model, encoded["train"], states, settings, hardware, key, folder / mechanism)
        found = measure(model, encoded["test"], states, hardware)
        found["valid_accuracy"] = measure(model, encoded["valid"], states, hardware)["accuracy"]
        metrics |= {f"{MECHANISMS[mechanism]}_{name}": value for name, value in found.items()}
    return metrics


def counts(annotations: Annotations) -> dict[str, str]:
    """What explains the metrics: pairs of each part, and the rationales that are not in their response."""
    parts = [part_of(one.seeker_post) for one in annotations["emotional_reactions"]]
    rows = [one for mechanism in MECHANISMS for one in annotations[mechanism]]
    lost = sum(len(one.rationales) - len(rationale_spans(one)) for one in rows)
    return {f"{part}_pairs": str(parts.count(part)) for part in ("train", "valid", "test")} | {
        "rationales": str(sum(len(one.rationales) for one in rows)),
        "rationales_not_in_response": str(lost),
    }


def main(params: Params) -> None:
    """Write the classifiers and their metrics."""
    import torch

    from attune.classifiers.epitome.files import save
    from attune.models.encoder import encoder_signature, load_encoder

    corpus = SAMPLE if params.epitome.corpus == "sample" else RAW
    annotations = {mechanism: read_annotations(corpus / file) for mechanism, file in FILES.items()}
    settings = (params.epitome, params.hardware, params.seed)
    with checkpoints("epitome", (params.encoder, *settings), [Path("stages"), corpus]) as folder:
        torch.manual_seed(params.seed)  # a hub's encoder may lack the pooler, which nothing here reads
        encoder, tokenizer = load_encoder(params.encoder, params.hardware)
        models = make_models(encoder, params.epitome, params.seed)
        classifiers = Classifiers(models, tokenizer, params.epitome.max_length)
        metrics = learn(classifiers, annotations, *settings, folder)
        signature = encoder_signature(params.encoder) | counts(annotations)
        origin = params.epitome.checkpoints or f"trained on {params.epitome.corpus}"
        save(classifiers, {"classifiers": origin, **signature}, TARGET)
        write_json(METRICS, {name: round(value, DIGITS) for name, value in metrics.items()})


if __name__ == "__main__":
    with reported():
        main(load())
