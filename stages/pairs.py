"""Stage `pairs@eK`: the preference pairs of one epoch, by the rule in `pairs.rule`.

    python -m stages.pairs e2

writes `data/pairs/e2.parquet`, `metrics/pairs/e2.json`, and `data/pairs/e2.valid.parquet`: pairs of the valid split,
on which stage `dpo@e2` measures what it moved.
"""

from __future__ import annotations

from pathlib import Path

from attune.config.params import load
from attune.config.schema import Params, chain
from attune.data.examples import read_examples
from attune.pairs.build import TRAIN, file, in_memory, opposite_emotion
from attune.pairs.held_out import valid_pairs
from attune.pairs.instruction import instructed
from attune.pairs.metrics import write_pairs
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported
from attune.runtime.io import write_json

PAIRS = Path("data/pairs")
# Scratch directory; may survive a kill. Git-ignored.
WORK = Path("data/.pairs")
METRICS = Path("metrics/pairs")


def main(key: str, params: Params) -> None:
    """Write the pairs of round `key` and their metrics.

    If draws depend on data only, the first round's pairs list the rejected replies of all epochs of `dpo.epochs`. With
    `pairs.fresh: false` every round has the draws of its chain's first one.
    """
    target, number = PAIRS / f"{key}.parquet", len(chain(params.rounds, key))
    epoch = number if params.pairs.fresh else 1
    if params.pairs.rule == "opposite_emotion":
        metrics = opposite_emotion(params, epoch, target, WORK / key)
    elif params.pairs.rule == "file":
        from_file, metrics = file(params, epoch)
        write_pairs(instructed(from_file, params.pairs), target)
    else:
        pairs, metrics = in_memory(read_examples(TRAIN, params.context), params, key, epoch)
        write_pairs(instructed(pairs, params.pairs), target)
    if number > epoch:
        metrics["repeated_rejected"] = 100.0
    write_pairs(instructed(valid_pairs(params), params.pairs), PAIRS / f"{key}.valid.parquet")
    write_json(METRICS / f"{key}.json", metrics)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, round="a key of rounds")
        main(arguments.round, load())
