"""Stage `dbt@<name>`: the classifier of the four stages of DBT, trained on the acts that people gave to replies.

    python -m stages.dbt dbt

writes the folder that `dbt.classifiers` names for it (what `stages.scoring.dbt.stage_probabilities` reads) and
`metrics/scorers/dbt.json`: how good it is on the test split's conversations, which it has not seen.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from stages.checkpoints import checkpoints
from stages.dialogues import SPLITS, Dialogue, Example, examples, read_dialogues
from stages.errors import UserError, reported
from stages.files import write_json
from stages.params import Dbt, Hardware, Params, load
from stages.scoring.dbt import LABELS, DbtError, read_stages

if TYPE_CHECKING:
    from stages.scoring.turn_classifier import TurnClassifier

DIALOGUES = Path("data/dialogues")
RAW = Path("data/raw")
SAMPLE = Path("data/sample/esconv_sample")
METRICS = Path("metrics/scorers")
DIGITS = 2

Labelled = dict[str, list[tuple[Example, int]]]


def source(settings: Dbt) -> Path:
    """The folder of what the classifier learns from: dialogues, or the files of a corpus."""
    if settings.corpus is None:
        return DIALOGUES
    return SAMPLE if settings.corpus == "sample" else RAW / settings.corpus


def read(settings: Dbt) -> list[Dialogue]:
    """The dialogues that the classifier learns from, of all splits.

    Raises:
        CorpusError: a file of `dbt.corpus` is missing or does not fit its format.
    """
    folder = source(settings)
    if settings.corpus is None:
        return [one for split in SPLITS for one in read_dialogues(folder / f"{split}.parquet")]
    dialogues: list[Dialogue] = import_module(f"stages.corpora.{settings.reader}").read(folder)[0]
    return dialogues


def label(dialogues: Sequence[Dialogue], stages: Mapping[str, str], context_turns: int) -> tuple[Labelled, int]:
    """Every assistant turn that has an act, with the index of its label, by split; and how many have none.

    Raises:
        DbtError: an act is not in the table, no turn of the train split has an act, or all have the same label.
    """
    found: Labelled = {split: [] for split in SPLITS}
    without, unknown = 0, Counter[str]()
    for dialogue in dialogues:
        for one in examples(dialogue, "every", context_turns):
            if one.act is None:
                without += 1
            elif one.act not in stages:
                unknown[one.act] += 1
            else:
                found[dialogue.split].append((one, LABELS.index(stages[one.act])))
    if unknown:
        names = ", ".join(f"{name!r} ({count})" for name, count in unknown.most_common(5))
        raise DbtError(f"dbt.stages has no row for {len(unknown)} acts of the corpus: {names}: add a row for each")
    if len({index for _, index in found["train"]}) < 2:
        raise DbtError("the train split has turns of fewer than two labels: dbt.stages and the corpus must fit")
    return found, without


def learn(
    classifier: TurnClassifier, labelled: Labelled, settings: Dbt, hardware: Hardware, seed: int, folder: Path
) -> dict[str, float]:
    """Train the classifier in place and measure it, in percent.

    Args:
        classifier: with a fresh head.
        labelled: of `label`.
        settings: hyperparameters.
        hardware: device and precision.
        seed: of order and dropout.
        folder: for checkpoints, written after each epoch.

    Returns:
        `quality` on the test split; accuracy and macro-F1 on valid, by which hyperparameters are chosen.
    """
    from stages.scoring.turn_classifier import encode, probabilities
    from stages.scoring.turn_training import quality, train

    inputs, truth = {}, {}
    for split, rows in labelled.items():
        inputs[split] = encode(classifier, [one.context for one, _ in rows], [one.target for one, _ in rows])
        truth[split] = [index for _, index in rows]
    train(classifier, inputs["train"], truth["train"], settings, hardware, f"{seed}:dbt", folder / "dbt.pt")
    found = {
        split: quality(classifier.labels, truth[split], probabilities(classifier, inputs[split], hardware))
        for split in ("test", "valid")
    }
    return found["test"] | {f"valid_{name}": found["valid"][name] for name in ("accuracy", "macro_f1")}


def main(name: str, params: Params) -> None:
    """Write the classifier and its metrics.

    Raises:
        UserError: there is no such classifier, or `read` and `label` as they say.
    """
    import torch

    from stages.modeling.encoder import encoder_signature, load_encoder
    from stages.scoring.turn_classifier import TurnClassifier, make_model, save

    settings = params.dbt
    if name not in settings.classifiers:
        raise UserError(f"{name!r} is none of dbt.classifiers: {', '.join(settings.classifiers) or 'there are none'}")
    deps = [Path("stages"), Path(settings.stages), source(settings)]
    labelled, without = label(read(settings), read_stages(Path(settings.stages)), settings.context_turns)
    training = (settings, params.hardware, params.seed)
    with checkpoints(f"dbt@{name}", (params.encoder, *training), deps) as folder:
        torch.manual_seed(params.seed)
        encoder, tokenizer = load_encoder(params.encoder, params.hardware)
        model = make_model(encoder, len(LABELS))
        classifier = TurnClassifier(model, tokenizer, LABELS, settings.max_length, settings.context_turns)
        metrics = learn(classifier, labelled, *training, folder)
        signature = encoder_signature(params.encoder) | counts(labelled, without, settings, params.corpus.name)
        save(classifier, signature, Path(settings.classifiers[name]))
        write_json(METRICS / f"{name}.json", {key: round(value, DIGITS) for key, value in metrics.items()})


def counts(labelled: Labelled, without: int, settings: Dbt, corpus: str) -> dict[str, str]:
    """What explains the metrics: the source, the turns of each split, and those without an act."""
    turns = {f"{split}_turns": str(len(rows)) for split, rows in labelled.items()}
    source = {"classifier": f"trained on {settings.corpus or corpus}", "stages": settings.stages}
    return source | turns | {"turns_without_act": str(without)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="a key of dbt.classifiers")
    with reported():
        main(parser.parse_args().classifier, load())
