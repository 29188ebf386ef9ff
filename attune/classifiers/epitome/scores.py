"""Metrics of EPITOME's levels: levels of the replies, levels of the references, and their squared difference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.classifiers.epitome.files import CONFIG
from attune.classifiers.epitome.model import MECHANISMS

if TYPE_CHECKING:
    import pandas as pd

# Keys of `epitome.json` that explain a metric.
EXPLAINS = (
    *("classifiers", "compares_with", "form", "encoder", "encoder_origin", "encoder_sha256", "max_length"),
    *(f"sha256_{short}" for short in MECHANISMS.values()),
)

LEVELS_OF = "levels_sha256_"
"""Prefix of the keys for the files of published levels that the classifiers learnt from."""


def per_example(levels: Mapping[str, Sequence[int]], references: pd.DataFrame) -> dict[str, list[int]]:
    """`diff_*`, the squared difference of the levels (Lee et al. 2022), `level_*` and `reference_level_*`.

    Args:
        levels: mechanism to the (N,) levels of the replies, 0 to 2.
        references: (N,) rows with the columns `level_*`, the levels of the human replies.
    """
    model = {short: [int(level) for level in levels[mechanism]] for mechanism, short in MECHANISMS.items()}
    human = {short: references[f"level_{short}"].tolist() for short in model}
    return {
        **{f"diff_{short}": squared_differences(model[short], human[short]) for short in model},
        **{f"level_{short}": column for short, column in model.items()},
        **{f"reference_level_{short}": column for short, column in human.items()},
    }


def squared_differences(levels: Sequence[int], references: Sequence[int]) -> list[int]:
    """(level - level of the reference)² of each example, 0 to 4: its term of diff-EPITOME (Lee et al. 2022).

    Raises:
        ValueError: the two have different lengths.
    """
    return [(level - reference) ** 2 for level, reference in zip(levels, references, strict=True)]


def means(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each column.

    Raises:
        ValueError: there are no examples.
    """
    if not all(map(len, columns.values())):
        raise ValueError("no examples")
    return {name: sum(column) / len(column) for name, column in columns.items()}


def signature(folder: Path) -> dict[str, str]:
    """The definition of `diff_*`, and the origin of the classifiers from `epitome.json` in `folder`."""
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    names = [name for name in EXPLAINS if name in settings]
    names += [name for name in settings if name.startswith(LEVELS_OF)]
    origin = {f"epitome_{name}": str(settings[name]) for name in names}
    return {"diff": "mean squared difference of the EPITOME levels, 0 to 2, of reply and reference", **origin}
