"""The scores by example that intervals are computed from, and the file that an interval goes into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.schema import scoring_stage
from attune.runtime.errors import DataError
from attune.runtime.io import write_json

if TYPE_CHECKING:
    import pandas as pd

SCORES = Path("data/scores")
INTERVALS = Path("metrics/intervals")
DIGITS = 4


def read_scores(scorer: str, variant: str) -> pd.DataFrame:
    """Read a variant's scores by example, in the order of their ids.

    Raises:
        DataError: the file is missing; names the stage that writes it.
    """
    import pandas as pd

    path = SCORES / scorer / f"{variant}.parquet"
    try:
        return pd.read_parquet(path).sort_values("id", ignore_index=True)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro {scoring_stage(scorer, variant)}`") from None


def write_intervals(scorer: str, variant: str, bounds: Mapping[str, float]) -> None:
    """Write `metrics/intervals/<scorer>/<variant>.json`."""
    path = INTERVALS / scorer / f"{variant}.json"
    write_json(path, {name: round(value, DIGITS) for name, value in bounds.items()})
