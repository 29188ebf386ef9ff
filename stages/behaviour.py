"""Stage `behaviour@<name>`: the classifiers of what a counsellor does in a reply.

    python -m stages.behaviour behaviour

writes the folder that `behaviour.classifiers` names for it (what `attune.classifiers.behaviour.classifier.probabilities` reads): a
classifier of therapists' behaviours, trained on the acts of a corpus, and one of what adheres to motivational
interviewing, trained on labelled sentences; and `metrics/scorers/behaviour.json`: how good they are on what they have
not seen.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.classifiers.behaviour.classifier import BEHAVIOUR, BEHAVIOURS, MITI
from attune.config.params import folder_of, load
from attune.config.schema import Behaviour, Params, TurnTraining
from attune.corpora.leakage import sentences_of
from attune.corpora.readers import miti_sentences
from attune.corpora.readers.registry import read_every_split
from attune.data.dialogue import SPLITS, Dialogue, normalise
from attune.labels.miti import ADHERENCE, read_adherence
from attune.labels.turn_labels import Labelled, LabelledTurn, label_turns, require_known, require_two
from attune.runtime.checkpoints import checkpoints
from attune.runtime.errors import reported
from attune.runtime.io import write_json

DIALOGUES = Path("data/dialogues")
RAW = Path("data/raw")
SAMPLE = Path("data/sample/miti_sentences")
METRICS = Path("metrics/scorers")
DIGITS = 2


@dataclass(frozen=True)
class Part:
    """One of the two classifiers: its labels, what it learns from and how, and what explains it."""

    labels: tuple[str, ...]
    labelled: Labelled
    settings: TurnTraining
    context_turns: int
    origin: dict[str, str]


def source(settings: Behaviour) -> Path:
    """The folder of the dialogues whose acts are behaviours: prepared, or the files of a corpus."""
    return DIALOGUES if settings.corpus is None else RAW / settings.corpus


def read_turns(settings: Behaviour) -> list[Dialogue]:
    """The dialogues whose acts are behaviours, of all splits.

    Raises:
        DataError: a file of `behaviour.data` is missing or does not fit its format.
    """
    return read_every_split(source(settings), settings.reader if settings.corpus else None)


def sentence_folder(corpus: str) -> Path:
    """Where the labelled sentences are."""
    return SAMPLE if corpus == "sample" else RAW / corpus


def label_sentences(folder: Path, table: Mapping[str, str], prepared: Sequence[Dialogue]) -> tuple[Labelled, int]:
    """The labelled sentences by split, each a reply without context; and how many were left out.

    Args:
        folder: with the sentences.
        table: of adherence.
        prepared: the dialogues of all splits; train sentences of held-out ones are left out.

    Raises:
        DataError: as `miti_sentences.read`.
        DataError: a label is not in the table, or the train part has fewer than two kinds.
    """
    found: Labelled = {split: [] for split in SPLITS}
    unknown = Counter[str]()
    sentences = miti_sentences.read(folder)
    held_out = sentences_of(prepared, [one.text for one in sentences if one.split == "train"])
    left_out = [one for one in sentences if one.split == "train" and normalise(one.text) in held_out]
    for one in sentences:
        if one in left_out:
            continue
        if one.act in table:
            found[one.split].append(LabelledTurn((), one.text, ADHERENCE.index(table[one.act])))
        else:
            unknown[one.act] += 1
    require_known(unknown, "behaviour.table")
    require_two(found, "behaviour.table")
    return found, len(left_out)


def read(params: Params) -> dict[str, Part]:
    """The two classifiers that are to be trained, by their folder.

    Raises:
        DataError, DataError: what they learn from is missing, or does not fit.
    """
    acts, miti = params.behaviour, params.miti
    identity = {label: label for label in BEHAVIOURS}
    turns, without = label_turns(read_turns(acts), identity, BEHAVIOURS, acts.context_turns, "behaviour.data")
    prepared, adherence = read_every_split(DIALOGUES, None), read_adherence(Path(miti.adherence))
    sentences, left_out = label_sentences(sentence_folder(miti.corpus), adherence, prepared)
    origin = {"classifier": f"trained on {acts.corpus or params.corpus.name}", "turns_without_act": str(without)}
    named = {"classifier": f"trained on {miti.corpus}", "adherence": miti.adherence, "left_out": str(left_out)}
    return {
        BEHAVIOUR: Part(BEHAVIOURS, turns, acts, acts.context_turns, origin),
        MITI: Part(ADHERENCE, sentences, miti, 0, named),
    }


def main(name: str, params: Params) -> None:
    """Write the classifiers and their metrics.

    Raises:
        UserError: there is no such classifier, or `read` as it says.
    """
    from attune.classifiers.common.turn_classifier import save
    from attune.classifiers.common.turn_training import learn
    from attune.models.encoder import encoder_signature, load_encoder

    acts, miti, rest = params.behaviour, params.miti, (params.hardware, params.seed)
    folder = folder_of(acts.classifiers, name, "behaviour.classifiers")
    deps = [Path("stages"), Path(miti.adherence), source(acts), sentence_folder(miti.corpus), DIALOGUES]
    parts, made = read(params), {}
    with checkpoints(f"behaviour@{name}", (params.encoder, acts, miti, *rest), deps) as kept:
        for key, part in parts.items():
            encoder = load_encoder(params.encoder, params.hardware)
            given = (part.labels, part.labelled, part.settings, part.context_turns)
            made[key] = learn(encoder, *given, *rest, kept / key)
        for key, part in parts.items():
            counts = {f"{split}_examples": str(len(rows)) for split, rows in part.labelled.items()}
            signature = encoder_signature(params.encoder) | part.origin | counts
            save(made[key][0], signature, folder / key)
        metrics = {f"{key}_{one}": value for key, (_, found) in made.items() for one, value in found.items()}
        write_json(METRICS / f"{name}.json", {key: round(value, DIGITS) for key, value in metrics.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="a key of behaviour.classifiers")
    with reported():
        main(parser.parse_args().classifier, load())
