"""Paired comparisons on the same test examples: of two models, or of two ways of training.

A comparison is the difference, first less second, of every metric that the tables show and that has scores by example,
with the 95 % interval of the paired bootstrap (`attune/scoring/intervals/bootstrap.py`). For a metric without a better
direction, such as the share of questions, it also has the difference of the distances to the human replies,
|first - human| less |second - human|, which is recomputed in every resample. `attune record` keeps comparisons in its
JSON, and `attune/report/comparison_page.py` shows them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.schema import BASE, ROUNDS, Variant
from attune.data.dialogue import Targets, dialogue_of
from attune.report.results import MMLU, scores_file
from attune.report.tables import VARIANT_COLUMNS, Metrics, direction
from attune.runtime.errors import UserError
from attune.scoring.intervals.bootstrap import DISTANCE, columns, distances, intervals, metrics

if TYPE_CHECKING:
    import pandas as pd

Scores = dict[str, "pd.DataFrame"]
"""The scores by example of a variant, by scorer, in the order of their ids."""
Comparisons = dict[str, dict[str, Metrics]]
"""First side to second side to `<metric>.diff`, `<metric>.diff_low` and `<metric>.diff_high`."""

# Keys of a record's JSON.
STANDARD = "dpo_less_standard"
STANDS_IN = "stands_in_for"
DIGITS = 4
ENDS = ("diff", "diff_low", "diff_high")


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the intervals: which ids share a dialogue (`targets`), number of resamples, and seed."""

    targets: Targets
    resamples: int
    seed: int


def save_scores(scorers: Iterable[str], variants: Iterable[str], folder: Path) -> None:
    """Copy the scores by example of a run to `folder`, which is emptied first, as `<scorer>/<variant>.parquet`."""
    shutil.rmtree(folder, ignore_errors=True)
    for scorer, variant in product(scorers, variants):
        (folder / scorer).mkdir(parents=True, exist_ok=True)
        shutil.copy2(scores_file(scorer, variant).path, folder / scorer)


def load_scores(folder: Path) -> dict[str, Scores]:
    """The scores of each variant in a folder that `save_scores` wrote.

    Raises:
        UserError: there are none.
    """
    import pandas as pd

    scores: dict[str, Scores] = {}
    for path in sorted(folder.glob("*/*.parquet")):
        # `acc` of MMLU under its name in the tables.
        frame = pd.read_parquet(path).sort_values("id", ignore_index=True).rename(columns={"acc": MMLU})
        # Variants without a model have no scores of MMLU.
        if not frame.empty:
            scores.setdefault(path.stem, {})[path.parent.name] = frame
    if not scores:
        raise UserError(f"{folder} holds no scores: remove the record's JSON and record it again")
    return scores


def differences(first: Scores, second: Scores, bootstrap: Bootstrap) -> Metrics:
    """The differences of two variants, first less second, with their intervals.

    Returns:
        `<metric>.diff`, `.diff_low` and `.diff_high` for each metric of the tables that both have; and the same of
        `<metric>_distance`, the distance to the human replies, if the metric has no better direction and the human
        replies were scored.

    Raises:
        UserError: the two were scored on different examples.
    """
    distant = [f"{key}{DISTANCE}" for key, (heading, _) in VARIANT_COLUMNS.items() if not direction(heading)]
    shown = {f"{key}.{end}" for key in (*VARIANT_COLUMNS, *distant) for end in ENDS}
    values: Metrics = {}
    for scorer in (scorer for scorer in first if scorer in second):
        ids, other_ids = (scores[scorer]["id"].tolist() for scores in (first, second))
        if ids != other_ids:
            raise UserError(
                f"scores of the same name are of different examples ({len(set(ids) ^ set(other_ids))} are in one "
                "alone): the runs that are compared must differ in the model alone"
            )
        values |= intervals(
            columns(first[scorer]),
            columns(second[scorer]),
            bootstrap.resamples,
            bootstrap.seed,
            # Questions have no dialogues.
            ids if scorer == MMLU else [dialogue_of(key, bootstrap.targets) for key in ids],
            lambda scores, weights: metrics(scores, weights) | distances(scores, weights),
        )
    return {name: round(value, DIGITS) for name, value in values.items() if name in shown}


def against_standard(variants: Mapping[str, Variant], folder: Path, bootstrap: Bootstrap) -> Comparisons:
    """Each variant of DPO less each standard approach: fine-tuning without DPO, or an instruction to the base model.

    Args:
        variants: of one model.
        folder: the scores of that model, of `save_scores`.
        bootstrap: settings of the intervals.
    """
    scores = load_scores(folder)
    trained = [key for key, variant in variants.items() if Path(variant.model).parent == ROUNDS]
    standard = [
        key
        for key, variant in variants.items()
        if key not in trained and not variant.replies_file and (variant.model != BASE or variant.instruction_file)
    ]
    return {key: {other: differences(scores[key], scores[other], bootstrap) for other in standard} for key in trained}


def against_specialised(
    models: Mapping[str, bool], folder: Path, bootstrap: Bootstrap
) -> dict[str, dict[str, dict[str, Metrics]]]:
    """Each generalist model less each specialised one, variant by variant.

    Args:
        models: model to whether it is specialised.
        folder: has a folder of `save_scores` for each model.
        bootstrap: settings of the intervals.

    Returns:
        Generalist to specialised to variant to differences; empty unless there are models of both kinds.
    """
    if len(set(models.values())) < 2:
        return {}
    scores = {model: load_scores(folder / model) for model in models}
    specialised = [model for model, is_specialised in models.items() if is_specialised]

    def by_variant(generalist: Mapping[str, Scores], other: Mapping[str, Scores]) -> dict[str, Metrics]:
        return {key: differences(generalist[key], other[key], bootstrap) for key in generalist if key in other}

    return {
        model: {other: by_variant(scores[model], scores[other]) for other in specialised}
        for model in models
        if model not in specialised
    }
