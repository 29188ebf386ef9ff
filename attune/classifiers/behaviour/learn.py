"""Training of the classifiers of a counsellor's behaviours and of adherence to motivational interviewing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attune.classifiers.behaviour.classifier import BEHAVIOUR, BEHAVIOURS, MITI
from attune.classifiers.common.sources import PREPARED, read_sources, trained_on
from attune.corpora.leakage import sentences_of
from attune.corpora.readers import miti_sentences
from attune.data.dialogue import SPLITS, Dialogue, normalise
from attune.labels.miti import ADHERENCE, read_adherence
from attune.labels.turn_labels import Labelled, LabelledTurn, label_turns, require_known, require_two

if TYPE_CHECKING:
    from attune.config.schema import Params, TurnTraining


@dataclass(frozen=True)
class Task:
    """One of the two classifiers: its labels, training data and settings, and the origin of the data."""

    labels: tuple[str, ...]
    labelled: Labelled
    settings: TurnTraining
    context_turns: int
    origin: dict[str, str]


def label_sentences(folder: Path, table: Mapping[str, str], prepared: Sequence[Dialogue]) -> tuple[Labelled, int]:
    """The labelled sentences by split, each a reply without context, and the number of sentences left out.

    Args:
        folder: of the sentences.
        table: act to adherence.
        prepared: the dialogues of all splits. A train sentence that occurs in a held-out dialogue is left out.

    Raises:
        DataError: as `miti_sentences.read_sentences`; a label is not in the table; or train has fewer than two labels.
    """
    labelled: Labelled = {split: [] for split in SPLITS}
    unknown = Counter[str]()
    sentences = miti_sentences.read_sentences(folder)
    held_out = sentences_of(prepared, [sentence.text for sentence in sentences if sentence.split == "train"])
    left_out = 0
    for sentence in sentences:
        if sentence.split == "train" and normalise(sentence.text) in held_out:
            left_out += 1
        elif sentence.act in table:
            label = ADHERENCE.index(table[sentence.act])
            labelled[sentence.split].append(LabelledTurn((), sentence.text, label))
        else:
            unknown[sentence.act] += 1
    require_known(unknown, "behaviour.table")
    require_two(labelled, "behaviour.table")
    return labelled, left_out


def read_tasks(params: Params) -> dict[str, Task]:
    """The two classifiers to train, by the name of their folder.

    Raises:
        DataError: a source is missing or does not fit its format.
    """
    settings = params.behaviour
    data, sentences = Path(settings.data), Path(settings.sentences)
    identity = {label: label for label in BEHAVIOURS}
    dialogues, context_turns = read_sources(data, settings.reader), settings.context_turns
    turns, without_act = label_turns(dialogues, identity, BEHAVIOURS, context_turns, "behaviour.data")
    prepared, adherence = read_sources(PREPARED, settings.reader), read_adherence(Path(settings.table))
    labelled, left_out = label_sentences(sentences, adherence, prepared)
    turn_origin = {"classifier": trained_on(data, params.corpus.name), "turns_without_act": str(without_act)}
    sentence_origin = {"classifier": trained_on(sentences, params.corpus.name), "adherence": settings.table}
    return {
        BEHAVIOUR: Task(BEHAVIOURS, turns, settings, context_turns, turn_origin),
        MITI: Task(ADHERENCE, labelled, settings.miti, 0, sentence_origin | {"left_out": str(left_out)}),
    }


def learn(params: Params, checkpoints: Path, target: Path) -> dict[str, float]:
    """Train both classifiers and write their folders below `target`.

    Returns:
        `behaviour_*` and `miti_*`: `quality` on the test split, and accuracy and macro-F1 on valid, in percent.

    Raises:
        DataError: as `read_tasks`.
    """
    from attune.classifiers.common.turn_classifier import save
    from attune.classifiers.common.turn_training import train_and_measure
    from attune.models.encoder import encoder_signature, load_encoder

    tasks, trained = read_tasks(params), {}
    for name, task in tasks.items():
        encoder = load_encoder(params.encoder, params.hardware)
        data = (task.labels, task.labelled, task.settings, task.context_turns)
        trained[name] = train_and_measure(encoder, *data, params.hardware, params.behaviour.seed, checkpoints / name)
    for name, task in tasks.items():
        counts = {f"{split}_examples": str(len(examples)) for split, examples in task.labelled.items()}
        save(trained[name][0], encoder_signature(params.encoder) | task.origin | counts, target / name)
    return {f"{name}_{key}": value for name, (_, metrics) in trained.items() for key, value in metrics.items()}
