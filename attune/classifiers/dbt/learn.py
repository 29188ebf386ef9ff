"""Training of the classifier of the four stages of DBT, on the acts that people gave to replies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attune.classifiers.common.sources import read_sources, trained_on
from attune.classifiers.dbt.classifier import LABELS, read_stages
from attune.labels.turn_labels import Labelled, label_turns

if TYPE_CHECKING:
    from attune.config.schema import Dbt, Params


def read_turns(settings: Dbt) -> tuple[Labelled, int]:
    """The labelled turns by split, and the number of turns without an act.

    Raises:
        DataError: a file is missing or does not fit its format, an act is not in the table, or there are fewer than two
            labels.
    """
    stages = read_stages(Path(settings.table))
    dialogues = read_sources(Path(settings.data), settings.reader)
    return label_turns(dialogues, stages, LABELS, settings.context_turns, "dbt.table")


def learn(params: Params, checkpoints: Path, target: Path) -> dict[str, float]:
    """Train the classifier and write `target`.

    Returns:
        `quality` on the test split's conversations, and accuracy and macro-F1 on those of valid, in percent.

    Raises:
        DataError: as `read_turns`.
    """
    from attune.classifiers.common.turn_classifier import save
    from attune.classifiers.common.turn_training import train_and_measure
    from attune.models.encoder import encoder_signature, load_encoder

    settings = params.dbt
    labelled, without_act = read_turns(settings)
    encoder = load_encoder(params.encoder, params.hardware)
    seeded = (params.hardware, settings.seed, checkpoints / "dbt")
    classifier, metrics = train_and_measure(encoder, LABELS, labelled, settings, settings.context_turns, *seeded)
    origin = {"classifier": trained_on(Path(settings.data), params.corpus.name), "stages": settings.table}
    counts = {f"{split}_turns": str(len(turns)) for split, turns in labelled.items()}
    signature = encoder_signature(params.encoder) | origin | counts | {"turns_without_act": str(without_act)}
    save(classifier, signature, target)
    return metrics
