"""Stage `prepare`: convert the files of a corpus, or of a mixture of corpora, to dialogues in a common schema.

Writes `data/dialogues/`, `metrics/data.json` (counts), and `metrics/labels.json` (train dialogues of each label).

Dropped and counted are: what the reader drops; assistant turns before the first user turn, since chat templates
require a user turn first; dialogues without an assistant turn after a user turn; train dialogues that copy a valid
or test dialogue, and valid dialogues that copy a test dialogue (`attune.corpora.leakage`); and the train dialogues in
excess of the weights of a mixture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from attune.config.params import load
from attune.config.schema import Corpus
from attune.corpora.masking import KINDS, mask, read_names
from attune.corpora.readers.registry import stream_corpus
from attune.corpora.splitting import Store
from attune.data.dialogue import SPLITS, Dialogue, from_first_user
from attune.runtime.arrow_stream import scratch
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported
from attune.runtime.io import whole_folder, write_json

RAW = Path("data/raw")
DIALOGUES = Path("data/dialogues")
# Scratch directory; may survive a kill. Git-ignored.
WORK = Path("data/.prepare")
NAMES = Path("data/given_names.csv")
METRICS = Path("metrics/data.json")
LABELS = Path("metrics/labels.json")
# Dialogues processed at a time.
CHUNK = 4096


def read_parts(raw: Path, corpus: Corpus, dropped: Counter[str]) -> Iterator[Dialogue]:
    """All dialogues of the corpus from `raw/<corpus>`; adds those that the readers drop to `dropped`.

    In a mixture, the name of the part is the corpus of a dialogue and the prefix of its id.
    """
    for name, part in corpus.parts.items():
        options = {key: value for key in ("file", "columns") if (value := getattr(part, key)) is not None}
        for dialogue in stream_corpus(raw / name, part.reader, dropped, **options):
            yield replace(dialogue, corpus=name, id=f"{name}/{dialogue.id}") if corpus.mix else dialogue


def usable(dialogues: Sequence[Dialogue], dropped: Counter[str]) -> list[Dialogue]:
    """The dialogues with a target, from their first user turn; adds the others, and cut openings, to `dropped`."""
    trimmed = [replace(dialogue, turns=from_first_user(dialogue.turns)) for dialogue in dialogues]
    dropped.update(f"{d.split}_opening_turn" for d, t in zip(dialogues, trimmed, strict=True) if d != t)
    # Turns alternate, so the second is an assistant turn.
    dropped.update(f"{dialogue.split}_no_assistant_turn" for dialogue in trimmed if len(dialogue.turns) < 2)
    return [dialogue for dialogue in trimmed if len(dialogue.turns) > 1]


def describe(counts: Mapping[str, int], dropped: Counter[str]) -> dict[str, float]:
    """The metrics: dialogues, turns and words per turn by split, and what was dropped by reason.

    Args:
        counts: of `attune.corpora.splitting.count`.
        dropped: dialogues, and turns, by reason.
    """
    metrics: dict[str, float] = {}
    for split in SPLITS:
        turns = counts.get(f"{split}_turns", 0)
        metrics[f"{split}_dialogues"] = counts.get(f"{split}_dialogues", 0)
        metrics[f"{split}_turns"] = turns
        metrics[f"{split}_words_per_turn"] = round(counts.get(f"{split}_words", 0) / max(turns, 1), 4)
    return metrics | {f"dropped_{reason}": count for reason, count in sorted(dropped.items())}


def label_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Train dialogues of each label, `train_label_<label>`."""
    return {key: count for key, count in sorted(counts.items()) if key.startswith("train_label_")}


def main(corpus: Corpus, seed: int) -> None:
    """Read `data/raw/<corpus>`, write `data/dialogues` and the metrics."""
    dropped: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    weights = {name: part.weight for name, part in corpus.mix.items()}
    names = read_names(NAMES) if corpus.mask else None
    with scratch(WORK) as work, whole_folder(DIALOGUES) as folder:
        folder.mkdir()
        store = Store(work, weights, seed)
        for chunk in chunks(read_parts(RAW, corpus, dropped)):
            if names:
                # Before leakage is checked: a train dialogue may equal a test dialogue only once both are masked.
                chunk, counted = mask(chunk, names)
                masked += counted
            store.add(usable(chunk, dropped))
        counts = store.write(folder, dropped)
    metrics = describe(counts, dropped)
    if names:
        metrics |= {f"masked_{kind}": masked[kind] for kind in KINDS}
    parts = (f"{name}_{split}_dialogues" for name in corpus.mix for split in SPLITS)
    write_json(METRICS, metrics | {key: counts[key] for key in parts})
    write_json(LABELS, label_counts(counts))


def chunks(dialogues: Iterable[Dialogue]) -> Iterator[list[Dialogue]]:
    """The dialogues in lists of `CHUNK`."""
    following = iter(dialogues)
    while chunk := list(islice(following, CHUNK)):
        yield chunk


if __name__ == "__main__":
    with reported():
        stage_arguments(__doc__)
        params = load()
        main(params.corpus, params.seed)
