"""Stage `pairs@eK`: the preference pairs of one epoch, drawn anew from the opposite emotion.

    python -m stages.pairs e2

writes `data/pairs/e2.parquet` and `metrics/pairs/e2.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stages.dialogues import Example, normalise, read_examples, turn_list_type
from stages.errors import reported
from stages.files import write_json
from stages.params import Params, load
from stages.preferences.opposite_emotion import (
    Pair,
    PairError,
    build_pairs,
    group_by_label,
    random_part,
    read_opposites,
)

TRAIN = Path("data/dialogues/train.parquet")
PAIRS = Path("data/pairs")
METRICS = Path("metrics/pairs")


def epoch_pairs(
    examples: Sequence[Example], opposites: dict[str, str], limit: int | None, seed: int, epoch: int
) -> tuple[list[Example], list[Pair]]:
    """The examples that an epoch trains on and their pairs.

    Args:
        examples: of the train split; their targets are what is drawn from.
        opposites: label to opposite label.
        limit: as `pairs.limit`; the part is the same in every epoch.
        seed: of the run.
        epoch: from 1.

    Raises:
        PairError: a label has no opposite, an opposite no replies, or no pair is left.
    """
    part = random_part(examples, limit, seed)
    pairs = build_pairs(part, group_by_label(examples), opposites, seed=seed, epoch=epoch)
    if not pairs:
        raise PairError(f"no pair was made of {len(part)} dialogues: every opposite group holds only the chosen reply")
    return part, pairs


def describe(
    examples: Sequence[Example], pairs: Sequence[Pair], earlier: Sequence[Pair], labels: int
) -> dict[str, float]:
    """Metrics of an epoch's pairs; shares in percent, lengths in words.

    `longer_rejected` is the share of pairs whose rejected reply is the longer one: far from 50 it is a bias that a
    model can learn instead of the preference. `repeated_rejected` is the share whose rejected reply is one that an
    earlier epoch drew for the same dialogue.
    """
    drawn_before = {(p.id, normalise(p.rejected)) for p in earlier}
    words = [(len(p.chosen.split()), len(p.rejected.split())) for p in pairs]
    n = len(pairs)
    return {
        "pairs": n,
        "dropped": round(100 * (len(examples) - n) / len(examples), 4),
        "label_coverage": round(100 * len({p.label for p in pairs}) / labels, 4),
        "chosen_words": round(sum(c for c, _ in words) / n, 4),
        "rejected_words": round(sum(r for _, r in words) / n, 4),
        "longer_rejected": round(100 * sum(r > c for c, r in words) / n, 4),
        "repeated_rejected": round(100 * sum((p.id, normalise(p.rejected)) in drawn_before for p in pairs) / n, 4),
    }


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Parquet with the fields of `Pair`; `prompt` is a list of role, text, act."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ("chosen", "rejected", "label", "rejected_label", "rejected_id")
    columns = [("id", pa.string()), ("epoch", pa.int32()), ("prompt", turn_list_type())]
    schema = pa.schema([*columns, *((name, pa.string()) for name in texts)])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=schema), path)


def epoch_of(key: str, params: Params) -> int:
    """The epoch of a round: its place in `dpo.rounds`, from 1."""
    return list(params.dpo.rounds).index(key) + 1


def main(key: str, params: Params) -> None:
    """Write the pairs of round `key` and their metrics."""
    train, opposites = read_examples(TRAIN, params.corpus), read_opposites(Path(params.pairs.opposites))
    epoch = epoch_of(key, params)
    examples, pairs = epoch_pairs(train, opposites, params.pairs.limit, params.seed, epoch)
    # Draws are keyed by epoch, so those of earlier epochs come out again without their files.
    rounds = (epoch_pairs(train, opposites, params.pairs.limit, params.seed, e)[1] for e in range(1, epoch))
    earlier = [pair for one in rounds for pair in one]
    write_pairs(pairs, PAIRS / f"{key}.parquet")
    write_json(METRICS / f"{key}.json", describe(examples, pairs, earlier, len(opposites)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("round", help="a key of dpo.rounds")
    with reported():
        main(parser.parse_args().round, load())
