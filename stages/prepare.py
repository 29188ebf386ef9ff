"""Stage `prepare`: the files of a corpus to dialogues in one schema, and `metrics/data.json`.

Dropped and counted: what the reader drops, assistant turns before the first user turn (chat templates refuse an
assistant who speaks first), dialogues without an assistant turn after a user's, and train dialogues whose text
(normalised) is also in valid or test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from stages.dialogues import SPLITS, Dialogue, examples, from_first_user, write_dialogues
from stages.errors import reported
from stages.files import write_json
from stages.params import Corpus, load

RAW = Path("data/raw")
DIALOGUES = Path("data/dialogues")
METRICS = Path("metrics/data.json")


def prepare(folder: Path, reader: str) -> tuple[list[Dialogue], Counter[str]]:
    """Read a corpus and drop what cannot be used.

    Args:
        folder: with the corpus's files.
        reader: a module of `stages/corpora` with a function `read(folder)`.

    Returns:
        The dialogues that are left, and the number dropped by `<split>_<reason>`.

    Raises:
        CorpusError: a file does not fit its format; the message names file and line.
    """
    dialogues, dropped = import_module(f"stages.corpora.{reader}").read(folder)
    opened = [replace(d, turns=from_first_user(d.turns)) for d in dialogues]
    dropped.update(f"{d.split}_opening_turn" for d, o in zip(dialogues, opened, strict=True) if d != o)
    answered = [d for d in opened if examples(d, "last", None)]
    dropped.update(f"{d.split}_no_assistant_turn" for d in opened if not examples(d, "last", None))
    held_out = {d.text for d in answered if d.split != "train"}
    kept = [d for d in answered if d.split != "train" or d.text not in held_out]
    dropped["train_overlap_with_held_out"] = len(answered) - len(kept)
    return kept, dropped


def describe(dialogues: Sequence[Dialogue], dropped: Counter[str]) -> dict[str, float]:
    """Counts a reviewer decides from: dialogues, turns and words a turn by split, dropped by reason, train labels."""
    metrics: dict[str, float] = {}
    for split in SPLITS:
        turns = [turn for d in dialogues if d.split == split for turn in d.turns]
        metrics[f"{split}_dialogues"] = sum(d.split == split for d in dialogues)
        metrics[f"{split}_turns"] = len(turns)
        metrics[f"{split}_words_per_turn"] = round(sum(len(t.text.split()) for t in turns) / max(len(turns), 1), 4)
    metrics |= {f"dropped_{reason}": count for reason, count in sorted(dropped.items())}
    texts = {split: {d.text for d in dialogues if d.split == split} for split in SPLITS}
    metrics["overlap_valid_test"] = len(texts["valid"] & texts["test"])
    labels = Counter(d.label for d in dialogues if d.split == "train")
    return metrics | {f"train_label_{label}": count for label, count in sorted(labels.items())}


def write(dialogues: Sequence[Dialogue], folder: Path) -> None:
    """One parquet file a split, in order of the ids."""
    for split in SPLITS:
        write_dialogues(
            sorted((d for d in dialogues if d.split == split), key=lambda d: d.id), folder / f"{split}.parquet"
        )


def main(corpus: Corpus) -> None:
    """Read `data/raw/<corpus>`, write `data/dialogues` and the metrics."""
    dialogues, dropped = prepare(RAW / corpus.name, corpus.reader)
    write(dialogues, DIALOGUES)
    write_json(METRICS, describe(dialogues, dropped))


if __name__ == "__main__":
    with reported():
        main(load().corpus)
