"""Stage `intervals@<variant>`: how much of a number is the choice of the test dialogues.

    python -m stages.intervals sft-dpo

reads the scores by example of the variant and of `evaluate.reference` and writes `metrics/intervals/<variant>.json`:
for every metric of examples and for those of the corpus that sums over examples give (BLEU, `dbt_gap`,
`behaviour_reflection_to_question`), `<metric>.low` and `<metric>.high`; of a variant other than the reference also
`<metric>.diff` (variant less reference), `<metric>.diff_low` and `<metric>.diff_high`. With a second name,
`python -m stages.intervals sft-dpo dbt`, it does so in the folders of that name: `data/scores/dbt`,
`metrics/intervals/dbt`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.params import load
from attune.config.schema import Params
from attune.data.dialogue import Targets, dialogue_of
from attune.runtime.errors import DataError, reported
from attune.runtime.io import write_json

if TYPE_CHECKING:
    import pandas as pd

SCORES = Path("data/scores")
INTERVALS = Path("metrics/intervals")
DIGITS = 4


def read(path: Path) -> pd.DataFrame:
    """Read the scores that stage `evaluate` wrote, in the order of their ids.

    Raises:
        DataError: the file is missing.
    """
    import pandas as pd

    try:
        return pd.read_parquet(path).sort_values("id", ignore_index=True)
    except FileNotFoundError:
        stage = "evaluate" if path.parent == SCORES else f"{path.parent.name}_scores"
        raise DataError(f"{path} is missing: run `dvc repro {stage}@{path.stem}`") from None


def compare(
    own: pd.DataFrame, other: pd.DataFrame | None, targets: Targets, resamples: int, seed: int
) -> dict[str, float]:
    """The intervals of a variant's metrics, and of their differences to another variant's where one is given.

    The examples of a dialogue, several where `targets` says so, are drawn together.

    Raises:
        DataError: the two were scored on different examples.
    """
    from attune.scoring.intervals.bootstrap import columns, intervals

    if other is not None and own["id"].tolist() != other["id"].tolist():
        differ = len(set(own["id"]) ^ set(other["id"]))
        raise DataError(f"{SCORES}: the two variants differ in {differ} examples: run `dvc repro`")
    dialogues = [dialogue_of(name, targets) for name in own["id"]]
    return intervals(columns(own), None if other is None else columns(other), resamples, seed, dialogues)


def main(variant: str, params: Params, folder: str = "") -> None:
    """Write `metrics/intervals/<folder>/<variant>.json`."""
    settings, scores = params.evaluate, SCORES / folder
    other = None if variant == settings.reference else read(scores / f"{settings.reference}.parquet")
    own = read(scores / f"{variant}.parquet")
    found = compare(own, other, params.corpus.targets, settings.resamples, params.seed)
    write_json(INTERVALS / folder / f"{variant}.json", {name: round(value, DIGITS) for name, value in found.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", help="a key of variants")
    parser.add_argument("folder", nargs="?", default="", help="below data/scores and metrics/intervals")
    with reported():
        given = parser.parse_args()
        main(given.variant, load(), given.folder)
