"""Stage `audit`: check that no model is trained on a valid or test dialogue; writes `metrics/audit.json`.

The training data are the train split (SFT), the pairs of every round, the pretraining data of the base model, and the
data of the classifiers: EPITOME's annotations and the dialogues of `dbt.data` and `behaviour.data`. The classifier of
adherence leaves out held-out sentences of `behaviour.sentences`; they are counted. Replies with published levels
(`epitome.levels`) are replies to test dialogues, whose contexts a scorer may know: they are counted, too. A leak
(`attune.corpora.leakage`) is an error that lists the first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from attune.classifiers.epitome.annotations import FILES, read_annotations, split_of
from attune.classifiers.epitome.published_levels import read_levels
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
# Leaks that an error lists.
SHOWN = 10
WHAT_TO_DO = {
    "train": "run `dvc repro prepare`, which drops copies",
    "pairs": "pairs must come from train dialogues only: run `dvc repro pairs`; of rule file, remove the rows",
    "base": "remove the lines from the corpus that tiny.corpus names",
    "epitome": "remove the pairs from the annotations that epitome.data names",
    "dbt": "remove the dialogues from the corpus that dbt.data names",
    "behaviour": "remove the dialogues from the corpus that behaviour.data names",
    "valid": "run `dvc repro prepare`, which drops copies",
}


class Text(NamedTuple):
    """A training text: its location (file, and line, row or id), its turns, and the ids of its dialogues if known."""

    where: str
    turns: tuple[Turn, ...]
    ids: tuple[str, ...] = ()


class Leak(NamedTuple):
    """A training text with text of a held-out dialogue.

    Args:
        part: of the training data.
        where: as `Text.where`.
        held_out: id of the dialogue.
        split: of the dialogue.
    """

    part: str
    where: str
    held_out: str
    split: str


def check(part: str, texts: Iterable[Text], held_out: HeldOut, whole: bool = False) -> tuple[int, list[Leak]]:
    """The number of texts, and the leaks.

    Args:
        part: of the training data.
        texts: of the part.
        held_out: the texts of valid and test.
        whole: True if only copies of whole dialogues are leaks; within a corpus, dialogues share passages.
    """
    find: Callable[[Sequence[Turn]], str | None] = held_out.copy_of if whole else held_out.find
    count, leaks = 0, []
    for text in texts:
        count += 1
        by_id = next((id for id in text.ids if id in held_out.splits), None)
        if leaked := by_id or find(text.turns):
            leaks.append(Leak(part, text.where, leaked, held_out.splits[leaked]))
    return count, leaks


def of_split(dialogues: Iterable[Dialogue], split: str) -> Iterator[Text]:
    """The dialogues of a split."""
    file = DIALOGUES / f"{split}.parquet"
    return (Text(f"{file}: {dialogue.id}", dialogue.turns) for dialogue in dialogues if dialogue.split == split)


def of_pairs(params: Params) -> Iterator[Text]:
    """The chosen and rejected replies of all rounds, each with its context."""
    for key in params.rounds:
        path = PAIRS / f"{key}.parquet"
        rows = (row for table in read_batches(path) for row in table.to_pylist())
        for number, row in enumerate(rows, start=1):
            ids = {"chosen": row["id"], "rejected": row.get("rejected_id")}
            for side, example in ids.items():
                turns = (*to_turns(row["prompt"]), Turn("assistant", row[side]))
                dialogues = (dialogue_of(example, params.context.targets),) if example else ()
                yield Text(f"{path}, row {number} ({row['id']}), {side}", turns, dialogues)


def of_base(params: Params) -> Iterator[Text]:
    """The pretraining data of a base model that stage `base` trains."""
    if params.tiny.corpus == "sample":
        folder = SAMPLE / "empatheticdialogues"
        dialogues, _ = empathetic_dialogues.read(folder)
        return (Text(f"{folder / 'train.csv'}: {d.id}", d.turns) for d in dialogues if d.split == "train")
    folder = RAW / params.tiny.corpus
    return (Text(f"{folder / pretraining.FILE}:{line}", turns) for line, turns in pretraining.read_turns(folder))


def of_epitome(params: Params) -> Iterator[Text]:
    """The annotated pairs that the classifiers of empathy are trained on."""
    folder = Path(params.epitome.data)
    for file in FILES.values():
        for number, pair in enumerate(read_annotations(folder / file), start=1):
            if split_of(pair.seeker_post) == "train":
                turns = (Turn("user", pair.seeker_post), Turn("assistant", pair.response_post))
                yield Text(f"{folder / file}, pair {number}", turns)


def of_levels(folder: Path) -> Iterator[Text]:
    """The replies with published levels that the classifiers of empathy are trained on."""
    for row in read_levels(folder):
        if row.split == "train":
            turns = (Turn("user", row.seeker_post), Turn("assistant", row.response_post))
            yield Text(f"{folder}: {row.system}", turns)


def of_scorer(settings: Dbt | Behaviour) -> Iterator[Text]:
    """The train split of a corpus that a classifier of turns is trained on instead of the run's corpus."""
    folder = Path(settings.data)
    dialogues = read_every_split(folder, settings.reader)
    return (Text(f"{folder}: {dialogue.id}", dialogue.turns) for dialogue in dialogues if dialogue.split == "train")


def parts(params: Params) -> dict[str, Iterable[Text]]:
    """The training data of a run other than the train split, by part."""
    texts: dict[str, Iterable[Text]] = {"pairs": of_pairs(params)}
    if params.model.is_made:
        texts["base"] = of_base(params)
    if params.epitome.published is None:
        texts["epitome"] = of_epitome(params)
    for name, settings in (("dbt", params.dbt), ("behaviour", params.behaviour)):
        if name in params.classifiers and Path(settings.data) != DIALOGUES:
            texts[name] = of_scorer(settings)
    return texts


def left_out(sentences: Path, prepared: Iterable[Dialogue]) -> dict[str, float]:
    """The numbers of train sentences of the adherence classifier, and of those left out because they are held out."""
    train = [sentence.text for sentence in miti_sentences.read_sentences(sentences) if sentence.split == "train"]
    return {"miti_left_out": len(sentences_of(prepared, train)), "miti_checked": len(train)}


def masked(texts: Iterable[Text]) -> Iterator[Text]:
    """The texts, masked as stage `prepare` masks dialogues."""
    names = read_names(NAMES)
    for text in texts:
        [dialogue], _ = mask([Dialogue("", "", "", "", text.turns)], names)
        yield text._replace(turns=dialogue.turns)


def audit(params: Params) -> tuple[dict[str, float], list[Leak]]:
    """The metrics and the leaks of all parts.

    Raises:
        DataError, ModelError: training data cannot be read.
    """
    prepared = Prepared(DIALOGUES)
    held_out = HeldOut(prepared)
    test = HeldOut([dialogue for dialogue in prepared if dialogue.split == "test"])
    checks = {
        "valid": check("valid", of_split(prepared, "valid"), test, whole=True),
        "train": check("train", of_split(prepared, "train"), held_out, whole=True),
    }
    for part, texts in parts(params).items():
        # The pairs are built from masked dialogues.
        comparable = masked(texts) if params.corpus.mask and part != "pairs" else texts
        checks[part] = check(part, comparable, held_out)
    metrics: dict[str, float] = {}
    for part, (count, leaks) in checks.items():
        for split in SPLITS[1:] if part != "valid" else ("test",):
            metrics[f"{part}_in_{split}"] = sum(leak.split == split for leak in leaks)
        metrics[f"{part}_checked"] = count
    if (folder := params.epitome.level_corpus) and params.epitome.published is None:
        count, known = check("levels", of_levels(folder), held_out)
        metrics |= {"levels_of_held_out": len(known), "levels_checked": count}
    if "behaviour" in params.classifiers:
        metrics |= left_out(Path(params.behaviour.sentences), prepared)
    return metrics, [leak for _, leaks in checks.values() for leak in leaks]


def refuse(leaks: Sequence[Leak]) -> None:
    """Raise an error if there is a leak.

    Raises:
        DataError: listing the first `SHOWN` leaks by file and place, and what to do about each part.
    """
    if not leaks:
        return
    shown = [f"{leak.where}: text of the {leak.split} dialogue {leak.held_out}" for leak in leaks[:SHOWN]]
    more = [f"… and {len(leaks) - SHOWN} more"] if len(leaks) > SHOWN else []
    todo = [f"{part}: {WHAT_TO_DO[part]}" for part in dict.fromkeys(leak.part for leak in leaks)]
    raise DataError("\n".join([f"{len(leaks)} training texts contain held-out dialogues:", *shown, *more, *todo]))


def main(params: Params) -> None:
    """Write the metrics; all leak counts are 0 (`levels_of_held_out` is none).

    Raises:
        DataError: a leak count is not 0; nothing is written.
    """
    metrics, leaks = audit(params)
    refuse(leaks)
    write_json(METRICS, metrics)


if __name__ == "__main__":
    with reported():
        stage_arguments(__doc__)
        main(load())
