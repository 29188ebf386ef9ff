"""Metrics of EPITOME's levels: the levels of the replies, those of the references, and their squared difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attune.classifiers.epitome.model import MECHANISMS

if TYPE_CHECKING:
    import pandas as pd

# What `models/epitome/epitome.json` records of the classifiers that explains a number.
CLASSIFIERS = ("classifiers", "encoder", "encoder_origin", "encoder_sha256", "max_length")


def per_example(levels: Mapping[str, Sequence[int]], references: pd.DataFrame) -> dict[str, list[int]]:
    """`level_*`, `reference_level_*` and `diff_*`, the squared difference of the two (Lee et al. 2022)."""
    short = {MECHANISMS[name]: [int(level) for level in column] for name, column in levels.items()}
    human = {key: references[f"level_{key}"].tolist() for key in short}
    pairs = {key: list(zip(short[key], human[key], strict=True)) for key in short}
    return {
        **{f"diff_{key}": [(own - other) ** 2 for own, other in pairs[key]] for key in pairs},
        **{f"level_{key}": column for key, column in short.items()},
        **{f"reference_level_{key}": column for key, column in human.items()},
    }
