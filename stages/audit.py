"""Stage `audit`: no test or valid dialogue among what any model of the pipeline learns from; `metrics/audit.json`.

It checks the train split (SFT), the pairs of every round, the base model's pretraining data, and the training data of
the classifiers: EPITOME's annotations, the dialogues of `dbt.data` and `behaviour.data`. Stage `classifier@behaviour`
leaves out held-out sentences of `behaviour.sentences`, and they are counted. A leak (`attune.corpora.leakage` defines
it) ends the pipeline with an error that names the first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from attune.classifiers.epitome.annotations import FILES, read_annotations, split_of
from attune.config.params import load
from attune.config.schema import Behaviour, Dbt, Params
from attune.corpora.leakage import HeldOut, sentences_of
from attune.corpora.masking import mask, read_names
from attune.corpora.readers import empathetic_dialogues, miti_sentences, pretraining
from attune.corpora.readers.registry import Prepared, read_every_split
from attune.data.dialogue import SPLITS, Dialogue, Turn, dialogue_of, to_turns
from attune.runtime.arrow_stream import read_batches
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import DataError, reported
from attune.runtime.io import write_json

DIALOGUES = Path("data/dialogues")
PAIRS = Path("data/pairs")
RAW = Path("data/raw")
SAMPLE = Path("data/sample")
NAMES = Path("data/given_names.csv")
METRICS = Path("metrics/audit.json")
# Leaks that an error names one by one.
SHOWN = 10
WHAT_TO_DO = {
    "train": "run `dvc repro prepare`, which drops copies",
    "pairs": "pairs are made of train dialogues alone: run `dvc repro pairs`",
    "base": "take the lines out of the corpus that tiny.corpus names",
    "epitome": "take the pairs out of the annotations that epitome.data names",
    "dbt": "take the dialogues out of the corpus that dbt.data names",
    "behaviour": "take the dialogues out of the corpus that behaviour.data names",
    "valid": "run `dvc repro prepare`, which drops copies",
}


class Text(NamedTuple):
    """What a model learns from: where it stands (file, and line, row or id), its turns, and the dialogues' ids."""

    where: str
    turns: tuple[Turn, ...]
    ids: tuple[str, ...] = ()


class Leak(NamedTuple):
    """A text of a part of the training, and the held-out dialogue that it has text of."""

    part: str
    where: str
    held_out: str
    split: str


def look(part: str, texts: Iterable[Text], held_out: HeldOut, whole: bool = False) -> tuple[int, list[Leak]]:
    """The number of texts, and those that leak.

    Args:
        part: of the training.
        texts: that it learns from.
        held_out: the texts of valid and test.
        whole: whether copies of whole dialogues alone are leaks: within a corpus, people say the same things.
    """
    find: Callable[[Sequence[Turn]], str | None] = held_out.copy_of if whole else held_out.find
    checked, leaks = 0, []
    for text in texts:
        checked += 1
        own = next((one for one in text.ids if one in held_out.splits), None)
        if found := own or find(text.turns):
            leaks.append(Leak(part, text.where, found, held_out.splits[found]))
    return checked, leaks


def of_split(dialogues: Iterable[Dialogue], split: str) -> Iterator[Text]:
    """The dialogues of a split."""
    file = DIALOGUES / f"{split}.parquet"
    return (Text(f"{file}: {one.id}", one.turns) for one in dialogues if one.split == split)


def of_pairs(params: Params) -> Iterator[Text]:
    """Both sides of the pairs of every round, each after its context."""
    for key in params.rounds:
        path = PAIRS / f"{key}.parquet"
        rows = (row for table in read_batches(path) for row in table.to_pylist())
        for number, row in enumerate(rows, start=1):
            ids = {"chosen": row["id"], "rejected": row.get("rejected_id")}
            for side, one in ids.items():
                turns = (*to_turns(row["prompt"]), Turn("assistant", row[side]))
                own = (dialogue_of(one, params.context.targets),) if one else ()
                yield Text(f"{path}, row {number} ({row['id']}), {side}", turns, own)


def of_base(params: Params) -> Iterator[Text]:
    """What the base model is pretrained on, where a stage makes it."""
    if params.tiny.corpus == "sample":
        folder = SAMPLE / "empatheticdialogues"
        found, _ = empathetic_dialogues.read(folder)
        return (Text(f"{folder / 'train.csv'}: {one.id}", one.turns) for one in found if one.split == "train")
    folder = RAW / params.tiny.corpus
    return (Text(f"{folder / pretraining.FILE}:{line}", turns) for line, turns in pretraining.read(folder))


def of_epitome(params: Params) -> Iterator[Text]:
    """The annotated pairs that the classifiers of empathy are trained on."""
    folder = Path(params.epitome.data)
    for file in FILES.values():
        for number, one in enumerate(read_annotations(folder / file), start=1):
            if split_of(one.seeker_post) == "train":
                turns = (Turn("user", one.seeker_post), Turn("assistant", one.response_post))
                yield Text(f"{folder / file}, pair {number}", turns)


def of_scorer(settings: Dbt | Behaviour) -> Iterator[Text]:
    """The train split of a corpus that a classifier of turns learns from instead of the run's."""
    folder = Path(settings.data)
    found = read_every_split(folder, settings.reader)
    return (Text(f"{folder}: {one.id}", one.turns) for one in found if one.split == "train")


def parts(params: Params) -> dict[str, Iterable[Text]]:
    """What the models of a run learn from beside the train split, by the part of the training."""
    found: dict[str, Iterable[Text]] = {"pairs": of_pairs(params)}
    if params.model.is_made:
        found["base"] = of_base(params)
    if params.epitome.checkpoints is None:
        found["epitome"] = of_epitome(params)
    for name, settings in (("dbt", params.dbt), ("behaviour", params.behaviour)):
        if name in params.classifiers and Path(settings.data) != DIALOGUES:
            found[name] = of_scorer(settings)
    return found


def left_out(sentences: Path, prepared: Iterable[Dialogue]) -> dict[str, float]:
    """Train sentences of the classifier of adherence, and those that stage `behaviour` leaves out as held out."""
    train = [one.text for one in miti_sentences.read(sentences) if one.split == "train"]
    return {"miti_left_out": len(sentences_of(prepared, train)), "miti_checked": len(train)}


def masked(texts: Iterable[Text]) -> Iterator[Text]:
    """The texts as stage `prepare` would have masked them, one by one."""
    names = read_names(NAMES)
    for text in texts:
        [one], _ = mask([Dialogue("", "", "", "", text.turns)], names)
        yield text._replace(turns=one.turns)


def audit(params: Params) -> tuple[dict[str, float], list[Leak]]:
    """Count and find the leaks of all parts.

    Raises:
        DataError, ModelError: what a part learns from cannot be read.
    """
    prepared = Prepared(DIALOGUES)
    held_out = HeldOut(prepared)
    test = HeldOut([one for one in prepared if one.split == "test"])
    looks = {
        "valid": look("valid", of_split(prepared, "valid"), test, whole=True),
        "train": look("train", of_split(prepared, "train"), held_out, whole=True),
    }
    for part, texts in parts(params).items():
        known = masked(texts) if params.corpus.mask and part != "pairs" else texts
        looks[part] = look(part, known, held_out)
    metrics: dict[str, float] = {}
    for part, (checked, leaks) in looks.items():
        for split in SPLITS[1:] if part != "valid" else ("test",):
            metrics[f"{part}_in_{split}"] = sum(leak.split == split for leak in leaks)
        metrics[f"{part}_checked"] = checked
    if "behaviour" in params.classifiers:
        metrics |= left_out(Path(params.behaviour.sentences), prepared)
    return metrics, [leak for _, leaks in looks.values() for leak in leaks]


def refuse(leaks: Sequence[Leak]) -> None:
    """Say which leaks there are.

    Raises:
        DataError: there is one; names the first `SHOWN` by file and place, and what to do of each part.
    """
    if not leaks:
        return
    named = [f"{one.where}: text of the {one.split} dialogue {one.held_out}" for one in leaks[:SHOWN]]
    more = [f"… and {len(leaks) - SHOWN} more"] if len(leaks) > SHOWN else []
    todo = [f"{part}: {WHAT_TO_DO[part]}" for part in dict.fromkeys(leak.part for leak in leaks)]
    raise DataError("\n".join([f"{len(leaks)} texts that models learn from are held out:", *named, *more, *todo]))


def main(params: Params) -> None:
    """Write the counts, all of them 0.

    Raises:
        DataError: one is not; nothing is written.
    """
    metrics, leaks = audit(params)
    refuse(leaks)
    write_json(METRICS, metrics)


if __name__ == "__main__":
    with reported():
        stage_arguments(__doc__)
        main(load())
