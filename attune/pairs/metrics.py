"""TODO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from attune.data.dialogue import Example, normalise
from attune.data.pair import Pair, schema_of
from attune.pairs.dbt import ScoredPair
from attune.runtime.io import write_table


def describe(examples: Sequence[Example], pairs: Sequence[Pair | ScoredPair], labels: int) -> dict[str, float]:
    """Metrics of an epoch's pairs, of `labels` labels."""
    words = [(len(p.chosen.split()), len(p.rejected.split())) for p in pairs]
    counts = Counter(
        asked=len(examples),
        pairs=len(pairs),
        labels=len({p.label for p in pairs}),
        chosen_words=sum(c for c, _ in words),
        rejected_words=sum(r for _, r in words),
        longer_rejected=sum(r > c for c, r in words),
    )
    return measures(counts, labels)


def measures(counts: Counter[str], labels: int) -> dict[str, float]:
    """Metrics from the counts of `write_epoch`; shares in percent, lengths in words.

    `longer_rejected` is the share of pairs whose rejected reply is the longer one: far from 50 it is a bias that a
    model can learn instead of the preference.
    """
    n = counts["pairs"]
    return {
        "pairs": n,
        "dropped": percent(counts["asked"] - n, counts["asked"]),
        "label_coverage": percent(counts["labels"], labels),
        "chosen_words": round(counts["chosen_words"] / n, 4),
        "rejected_words": round(counts["rejected_words"] / n, 4),
        "longer_rejected": percent(counts["longer_rejected"], n),
    }


def percent(part: int, whole: int) -> float:
    """The share in percent, as metrics have it."""
    return round(100 * part / whole, 4)


def repeated(pairs: Sequence[Pair], earlier: Sequence[Pair]) -> dict[str, float]:
    """The share, in percent, whose rejected reply is one that an earlier epoch drew for the same dialogue."""
    drawn_before = {(p.id, normalise(p.rejected)) for p in earlier}
    times = sum((p.id, normalise(p.rejected)) in drawn_before for p in pairs)
    return {"repeated_rejected": percent(times, len(pairs))}


def scores(pairs: Sequence[ScoredPair]) -> dict[str, float]:
    """The mean scores of both sides, x 100."""
    sides = {
        "chosen_score": [p.chosen_score for p in pairs],
        "rejected_score": [p.rejected_score for p in pairs],
    }
    return {name: round(100 * sum(values) / len(values), 4) for name, values in sides.items()}


def write_pairs(pairs: Sequence[Pair | ScoredPair], path: Path) -> None:
    """Parquet with the fields of the pairs."""
    import pyarrow as pa

    write_table(path, pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=schema_of(type(pairs[0]))))
