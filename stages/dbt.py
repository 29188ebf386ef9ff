"""Stage `dbt@<name>`: the classifier of the four stages of DBT, trained on the acts that people gave to replies.

    python -m stages.dbt dbt

writes the folder that `dbt.classifiers` names for it (what `attune.classifiers.dbt.classifier.probabilities` reads) and
`metrics/scorers/dbt.json`: how good it is on the test split's conversations, which it has not seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from attune.classifiers.dbt.classifier import LABELS, read_stages
from attune.config.params import folder_of, load
from attune.config.schema import Dbt, Params
from attune.corpora.readers.registry import read_every_split
from attune.data.dialogue import Dialogue
from attune.labels.turn_labels import Labelled, label_turns
from attune.runtime.checkpoints import checkpoints
from attune.runtime.errors import reported
from attune.runtime.io import write_json

DIALOGUES = Path("data/dialogues")
RAW = Path("data/raw")
SAMPLE = Path("data/sample/esconv_sample")
METRICS = Path("metrics/scorers")
DIGITS = 2


def source(settings: Dbt) -> Path:
    """The folder of what the classifier learns from: dialogues, or the files of a corpus."""
    if settings.corpus is None:
        return DIALOGUES
    return SAMPLE if settings.corpus == "sample" else RAW / settings.corpus


def read(settings: Dbt) -> list[Dialogue]:
    """The dialogues that the classifier learns from, of all splits.

    Raises:
        DataError: a file of `dbt.data` is missing or does not fit its format.
    """
    return read_every_split(source(settings), settings.reader if settings.corpus else None)


def main(name: str, params: Params) -> None:
    """Write the classifier and its metrics.

    Raises:
        UserError: there is no such classifier, or `read` and `label_turns` as they say.
    """
    from attune.classifiers.common.turn_classifier import save
    from attune.classifiers.common.turn_training import learn
    from attune.models.encoder import encoder_signature, load_encoder

    settings = params.dbt
    folder = folder_of(settings.classifiers, name, "dbt.classifiers")
    deps = [Path("stages"), Path(settings.stages), source(settings)]
    table, turns = read_stages(Path(settings.stages)), settings.context_turns
    labelled, without = label_turns(read(settings), table, LABELS, turns, "dbt.table")
    with checkpoints(f"dbt@{name}", (params.encoder, settings, params.hardware, params.seed), deps) as kept:
        encoder = load_encoder(params.encoder, params.hardware)
        rest = (params.hardware, params.seed, kept / "dbt")
        classifier, metrics = learn(encoder, LABELS, labelled, settings, turns, *rest)
        signature = encoder_signature(params.encoder) | counts(labelled, without, settings, params.corpus.name)
        save(classifier, signature, folder)
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
