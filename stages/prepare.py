"""Stage `prepare`: the files of a corpus, or of a mixture of several, to dialogues in one schema; `metrics/data.json`.

Dropped and counted: what the reader drops, assistant turns before the first user turn (chat templates refuse an
assistant who speaks first), dialogues without an assistant turn after a user's, train dialogues that copy one of valid
or test, and valid dialogues that copy one of test (`stages.corpora.leakage`). Of a mixture, the train dialogues that
its weights leave no room for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from stages.corpora.leakage import without_copies
from stages.corpora.masking import KINDS, mask, read_names
from stages.corpora.reading import read_corpus
from stages.corpora.splits import place
from stages.dialogues import SPLITS, CorpusError, Dialogue, examples, from_first_user, write_dialogues
from stages.errors import reported
from stages.files import write_json
from stages.params import Corpus, load

RAW = Path("data/raw")
DIALOGUES = Path("data/dialogues")
NAMES = Path("data/given_names.csv")
METRICS = Path("metrics/data.json")


def drop_unusable(dialogues: Sequence[Dialogue], dropped: Counter[str]) -> tuple[list[Dialogue], Counter[str]]:
    """The dialogues that can be trained on and answered, and `dropped` with what was dropped here."""
    opened = [replace(d, turns=from_first_user(d.turns)) for d in dialogues]
    dropped = dropped + Counter(f"{d.split}_opening_turn" for d, o in zip(dialogues, opened, strict=True) if d != o)
    answered = [d for d in opened if examples(d, "last", None)]
    dropped.update(f"{d.split}_no_assistant_turn" for d in opened if not examples(d, "last", None))
    kept, copies = without_copies(answered)
    dropped.update(copies)
    return kept, dropped


def read_parts(raw: Path, corpus: Corpus) -> tuple[list[Dialogue], Counter[str]]:
    """All dialogues of the corpus in force from `raw/<corpus>`, and how many the readers dropped by reason.

    Those of a mixture take the name of their part for their corpus and in front of their id.
    """
    dialogues: list[Dialogue] = []
    dropped: Counter[str] = Counter()
    for name, part in corpus.parts.items():
        given = {key: value for key in ("file", "columns") if (value := getattr(part, key)) is not None}
        found, lost = read_corpus(raw / name, part.reader, **given)
        dialogues += [replace(d, corpus=name, id=f"{name}/{d.id}") for d in found] if corpus.mix else found
        dropped += lost
    return dialogues, dropped


def weigh(dialogues: Sequence[Dialogue], weights: Mapping[str, float], seed: int) -> list[Dialogue]:
    """The largest part of a mixture whose train split has the corpora in the proportion of their weights.

    No dialogue is repeated, so the corpus that is smallest for its weight is there whole; of another one those with
    the lowest hashes of (seed, id), whatever their order. Valid and test stay whole.

    Args:
        dialogues: of all corpora, which `Dialogue.corpus` names.
        weights: of each corpus, > 0; only their proportion counts.
        seed: of the choice.

    Raises:
        CorpusError: a corpus has no train dialogue.
    """
    # As decimals, since 0.3 is not three times 0.1 in floating point.
    shares = {name: Fraction(str(weight)) for name, weight in weights.items()}
    train = {name: [d for d in dialogues if d.split == "train" and d.corpus == name] for name in shares}
    if without := [name for name, found in train.items() if not found]:
        raise CorpusError(f"corpus.mix: {', '.join(without)} has no train dialogue to mix")
    unit = min(len(found) / shares[name] for name, found in train.items())
    taken: set[str] = set()
    for name, found in train.items():
        ids = sorted((d.id for d in found), key=lambda one: (place(f"{seed}:{one}"), one))
        taken.update(ids[: math.floor(shares[name] * unit)])
    return [d for d in dialogues if d.split != "train" or d.id in taken]


def describe(dialogues: Sequence[Dialogue], dropped: Counter[str]) -> dict[str, float]:
    """Counts a reviewer decides from: dialogues, turns and words a turn by split, dropped by reason, train labels."""
    metrics: dict[str, float] = {}
    for split in SPLITS:
        turns = [turn for d in dialogues if d.split == split for turn in d.turns]
        metrics[f"{split}_dialogues"] = sum(d.split == split for d in dialogues)
        metrics[f"{split}_turns"] = len(turns)
        metrics[f"{split}_words_per_turn"] = round(sum(len(t.text.split()) for t in turns) / max(len(turns), 1), 4)
    metrics |= {f"dropped_{reason}": count for reason, count in sorted(dropped.items())}
    labels = Counter(d.label for d in dialogues if d.split == "train")
    return metrics | {f"train_label_{label}": count for label, count in sorted(labels.items())}


def describe_parts(dialogues: Sequence[Dialogue], corpora: Iterable[str]) -> dict[str, float]:
    """Dialogues of each corpus of a mixture by split."""
    counts = Counter((d.corpus, d.split) for d in dialogues)
    return {f"{name}_{split}_dialogues": counts[name, split] for name in corpora for split in SPLITS}


def write(dialogues: Sequence[Dialogue], folder: Path) -> None:
    """One parquet file a split, in order of the ids."""
    for split in SPLITS:
        write_dialogues(
            sorted((d for d in dialogues if d.split == split), key=lambda d: d.id), folder / f"{split}.parquet"
        )


def main(corpus: Corpus, seed: int) -> None:
    """Read `data/raw/<corpus>`, write `data/dialogues` and the metrics."""
    dialogues, dropped = read_parts(RAW, corpus)
    more: dict[str, float] = {}
    if corpus.mask:
        # Before texts are compared: train must not hold what is equal to a test dialogue once both are masked.
        dialogues, masked = mask(dialogues, read_names(NAMES))
        more |= {f"masked_{kind}": masked[kind] for kind in KINDS}
    dialogues, dropped = drop_unusable(dialogues, dropped)
    if corpus.mix:
        usable = len(dialogues)
        dialogues = weigh(dialogues, {name: part.weight for name, part in corpus.mix.items()}, seed)
        dropped["train_beyond_weight"] = usable - len(dialogues)
        more |= describe_parts(dialogues, corpus.mix)
    write(dialogues, DIALOGUES)
    write_json(METRICS, describe(dialogues, dropped) | more)


if __name__ == "__main__":
    with reported():
        params = load()
        main(params.corpus, params.seed)
