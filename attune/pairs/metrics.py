"""Metrics of an epoch's pairs (`metrics/pairs/<round>.json`), and the pairs' parquet form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from attune.data.dialogue import Example, normalise
from attune.data.pair import Pair, schema_of
from attune.pairs.ranked import ScoredPair
from attune.runtime.arrow_stream import write_table


def describe(examples: Sequence[Example | Pair], pairs: Sequence[Pair | ScoredPair], labels: int) -> dict[str, float]:
    """`measures` of pairs in memory.

    Args:
        examples: that the rule was applied to.
        pairs: that it made of them.
        labels: number of labels that the examples can have.
    """
    words = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
    counts = Counter(
        examples=len(examples),
        pairs=len(pairs),
        labels=len({pair.label for pair in pairs}),
        chosen_words=sum(chosen for chosen, _ in words),
        rejected_words=sum(rejected for _, rejected in words),
        longer_rejected=sum(rejected > chosen for chosen, rejected in words),
    )
    return measures(counts, labels)


def measures(counts: Counter[str], labels: int) -> dict[str, float]:
    """Metrics from the counts of `attune.pairs.opposite_emotion_stream.write_epoch`.

    Returns:
        `pairs`, their number; `dropped`, the percentage of examples without one; `label_coverage`, the percentage of
        labels with one; `chosen_words` and `rejected_words`, means; `longer_rejected`, the percentage of pairs whose
        rejected reply has more words than the chosen one: far from 50, a model can learn length instead of the
        preference.
    """
    n = counts["pairs"]
    return {
        "pairs": n,
        "dropped": percent(counts["examples"] - n, counts["examples"]),
        "label_coverage": percent(counts["labels"], labels),
        "chosen_words": round(counts["chosen_words"] / n, 4),
        "rejected_words": round(counts["rejected_words"] / n, 4),
        "longer_rejected": percent(counts["longer_rejected"], n),
    }


def percent(part: int, whole: int) -> float:
    """A share in percent, rounded for metrics files."""
    return round(100 * part / whole, 4)


def repeated(pairs: Sequence[Pair], earlier: Sequence[Pair]) -> dict[str, float]:
    """The percentage of pairs whose rejected text an earlier epoch rejected for the same example."""
    seen = {(pair.id, normalise(pair.rejected)) for pair in earlier}
    count = sum((pair.id, normalise(pair.rejected)) in seen for pair in pairs)
    return {"repeated_rejected": percent(count, len(pairs))}


def scores(pairs: Sequence[ScoredPair]) -> dict[str, float]:
    """The mean scores of chosen and rejected replies, in percent."""
    sides = {
        "chosen_score": [pair.chosen_score for pair in pairs],
        "rejected_score": [pair.rejected_score for pair in pairs],
    }
    return {name: round(100 * sum(values) / len(values), 4) for name, values in sides.items()}


def write_pairs(pairs: Sequence[Pair | ScoredPair], path: Path) -> None:
    """Write pairs, all of one class, to a parquet file with their fields as columns; it may be none."""
    import pyarrow as pa

    schema = schema_of(type(pairs[0]) if pairs else Pair)
    write_table(path, pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=schema))
