"""Stage `prepare`: convert the files of a corpus, or of a mixture of corpora, to dialogues in a common schema.

Writes `data/dialogues/`, `metrics/data.json` (counts), and `metrics/labels.json` (train dialogues of each label).

Dropped and counted are: what the reader drops; assistant turns before the first user turn, since chat templates
require a user turn first; dialogues without an assistant turn after a user turn; train dialogues that copy a valid
or test dialogue, and valid dialogues that copy a test dialogue (`attune.corpora.leakage`); and the train dialogues in
excess of the weights of a mixture.

A split without dialogues is an error, and so are labels that the preference rule cannot use: both would be found only
after hours of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from attune.config.params import load
from attune.config.schema import LABEL_RULES, Corpus, Pairs, rules
from attune.corpora.masking import KINDS, mask, read_names
from attune.corpora.readers.registry import stream_corpus
from attune.corpora.splitting import Store
from attune.data.dialogue import SPLITS, Dialogue, from_first_user, split_system
from attune.labels.opposites import check_coverage, read_opposites
from attune.runtime.arrow_stream import scratch
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import DataError, reported
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
        options |= {"messages": corpus.messages} if part.reader == "messages" else {}
        for dialogue in stream_corpus(raw / name, part.reader, dropped, **options):
            yield replace(dialogue, corpus=name, id=f"{name}/{dialogue.id}") if corpus.mix else dialogue


def usable(dialogues: Sequence[Dialogue], dropped: Counter[str]) -> list[Dialogue]:
    """The dialogues with a target, from their first user turn; adds the others, and cut openings, to `dropped`."""
    trimmed = [replace(dialogue, turns=from_first_user(dialogue.turns)) for dialogue in dialogues]
    dropped.update(f"{d.split}_opening_turn" for d, t in zip(dialogues, trimmed, strict=True) if d != t)
    # Turns alternate, so the second after a system turn is an assistant turn.
    answered = [len(split_system(dialogue.turns)[1]) > 1 for dialogue in trimmed]
    pairs = list(zip(trimmed, answered, strict=True))
    dropped.update(f"{dialogue.split}_no_assistant_turn" for dialogue, has in pairs if not has)
    return [dialogue for dialogue, has in pairs if has]


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


def require_dialogues(counts: Mapping[str, int], dropped: Counter[str]) -> None:
    """Check that every split has dialogues.

    Raises:
        DataError: naming the splits without, and what was dropped by reason.
    """
    if empty := [split for split in SPLITS if not counts.get(f"{split}_dialogues")]:
        kept = ", ".join(f"{split} {counts.get(f'{split}_dialogues', 0)}" for split in SPLITS)
        raise DataError(
            f"no dialogue is left in {' and '.join(empty)}: dialogues by split are {kept}; dropped are "
            f"{reasons(dropped) or 'none'}. Every split needs some (docs/bring-your-own.md#splits)"
        )


def require_labels(counts: Mapping[str, int], pairs: Pairs) -> None:
    """Check that the preference rule finds labels that it can use, in training and for the held-out pairs.

    Raises:
        DataError: dialogues have no label, or a label has no opposite; names the rules that read no labels.
    """
    if pairs.rule not in LABEL_RULES:
        return
    others = f"without labels there are pairs.rule = {', '.join(rule for rule in rules() if rule not in LABEL_RULES)}"
    opposites = read_opposites(Path(pairs.table))
    for split in ("train", "test"):
        start = f"{split}_label_"
        labels = {key.removeprefix(start): count for key, count in counts.items() if key.startswith(start)}
        total = counts[f"{split}_dialogues"]
        if unlabelled := total - sum(labels.values()):
            raise DataError(
                f"{unlabelled} of {total} {split} dialogues have no label, which pairs.rule = {pairs.rule} needs: "
                f"give each one; {others} (docs/bring-your-own.md)"
            )
        try:
            check_coverage(labels, opposites, labels)
        except DataError as error:
            raise DataError(f"{split} dialogues under pairs.rule = {pairs.rule}, {pairs.table}: {error}") from None


def reasons(dropped: Counter[str]) -> str:
    """What was dropped, with the counts."""
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted((+dropped).items()))


def main(corpus: Corpus, pairs: Pairs, seed: int) -> None:
    """Read `data/raw/<corpus>`, write `data/dialogues` and the metrics.

    Raises:
        DataError: a file does not fit its format, a split is empty, or the preference rule lacks labels; nothing is
            written.
    """
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
        require_dialogues(counts, dropped)
        require_labels(counts, pairs)
    print(", ".join(f"{split} {counts[f'{split}_dialogues']}" for split in SPLITS), "dialogues;", end=" ")
    print(f"dropped: {reasons(dropped)} (docs/data.md#what-is-dropped)" if +dropped else "dropped: none")
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
        main(params.corpus, params.pairs, params.seed)
