"""Which of two models, or of two ways of training, does better on the same test examples.

A comparison is the difference of every metric that tables show and that has scores by example, own less other, with
the 95 % interval of the paired bootstrap (`attune/scoring/intervals/bootstrap.py`). Of a metric that has no better end by itself,
such as the share of questions, it is also the difference of the distances to people's replies, |own - people| less
|other - people|, computed anew in every draw. `attune record` keeps comparisons in its JSON,
and `attune/report/comparison_page.py` tells them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.schema import BASE, ROUNDS, Variant
from attune.data.dialogue import Targets, dialogue_of
from attune.report.tables import VARIANT_COLUMNS, Metrics, direction
from attune.runtime.errors import UserError
from attune.scoring.intervals.bootstrap import DISTANCE, columns, distances, intervals, metrics

if TYPE_CHECKING:
    import pandas as pd

Scores = dict[str, "pd.DataFrame"]
"""The scores by example of a variant, by the folder that they lie in, in the order of their ids."""
Compared = dict[str, dict[str, Metrics]]
"""Own to other to `<metric>.diff`, `<metric>.diff_low` and `<metric>.diff_high`."""

STANDARD = "dpo_less_standard"
STANDS_IN = "stands_in_for"
DIGITS = 4
ENDS = ("diff", "diff_low", "diff_high")


def keep(scores: Path, folders: Mapping[str, Sequence[str]], target: Path) -> None:
    """Copy the scores by example to `target`, which is emptied first.

    Args:
        scores: folder of the scores.
        folders: variant to the folders below `scores` that hold a file of it ("" is `scores` itself).
        target: where the files lie afterwards, in the same folders.
    """
    shutil.rmtree(target, ignore_errors=True)
    for variant, names in folders.items():
        for name in names:
            (target / name).mkdir(parents=True, exist_ok=True)
            shutil.copy2(scores / name / f"{variant}.parquet", target / name)


def read(kept: Path) -> dict[str, Scores]:
    """The scores of each variant in a folder that `keep` wrote.

    Raises:
        UserError: there is no such folder.
    """
    import pandas as pd

    found: dict[str, Scores] = {}
    # What lies deepest are the files of further scorers.
    for path in sorted(kept.rglob("*.parquet"), key=lambda path: (len(path.parts), path)):
        frame = pd.read_parquet(path).sort_values("id", ignore_index=True)
        found.setdefault(path.stem, {})[path.parent.relative_to(kept).as_posix()] = frame
    if not found:
        raise UserError(f"{kept} holds no scores: remove the record's JSON and record it again")
    return found


@dataclass(frozen=True)
class Drawing:
    """How the intervals are made: `context.targets`, which says what the ids name, `evaluate.resamples` and `seed`."""

    targets: Targets
    resamples: int
    seed: int


def differences(own: Scores, other: Scores, drawing: Drawing) -> Metrics:
    """`<metric>.diff` (own less other) and its interval for each metric that the tables show and both have.

    `<metric>_distance.diff` is that of the distances to people's replies, where no end of the metric is better by
    itself and the replies of people were scored, too.

    Raises:
        UserError: the two were scored on different examples.
    """
    distant = [f"{key}{DISTANCE}" for key, (heading, _) in VARIANT_COLUMNS.items() if not direction(heading)]
    shown = {f"{key}.{end}" for key in (*VARIANT_COLUMNS, *distant) for end in ENDS}
    found: Metrics = {}
    for name in (name for name in own if name in other):
        ids, others = (one[name]["id"].tolist() for one in (own, other))
        if ids != others:
            raise UserError(
                f"scores of the same name are of different examples ({len(set(ids) ^ set(others))} are in one alone): "
                "the runs that are compared must differ in the model alone"
            )
        found |= intervals(
            columns(own[name]),
            columns(other[name]),
            drawing.resamples,
            drawing.seed,
            [dialogue_of(one, drawing.targets) for one in ids],
            lambda scores, weights: metrics(scores, weights) | distances(scores, weights),
        )
    return {name: round(value, DIGITS) for name, value in found.items() if name in shown}


def against_standard(variants: Mapping[str, Variant], kept: Path, drawing: Drawing) -> Compared:
    """Each variant of DPO less each standard approach: fine-tuning without DPO, or an instruction to the base model.

    Args:
        variants: of one model.
        kept: the scores of that model, as `keep` wrote them.
        drawing: of the bootstrap.
    """
    scores = read(kept)
    trained = [key for key, one in variants.items() if Path(one.model).parent == ROUNDS]
    standard = [
        key for key, one in variants.items() if key not in trained and (one.model != BASE or one.instruction_file)
    ]
    return {own: {to: differences(scores[own], scores[to], drawing) for to in standard} for own in trained}


def against_specialised(
    models: Mapping[str, bool], kept: Path, drawing: Drawing
) -> dict[str, dict[str, dict[str, Metrics]]]:
    """Each generalist model less each specialised one, variant by variant.

    Args:
        models: model to whether it is specialised.
        kept: folder with the scores of each model in a folder of its name, as `keep` wrote them.
        drawing: of the bootstrap.

    Returns:
        Generalist to specialised to variant to differences; empty where there are no models of both kinds.
    """
    if len(set(models.values())) < 2:
        return {}
    scores = {model: read(kept / model) for model in models}
    return {
        own: {
            to: {
                key: differences(scores[own][key], scores[to][key], drawing) for key in scores[own] if key in scores[to]
            }
            for to, specialised in models.items()
            if specialised
        }
        for own, specialised in models.items()
        if not specialised
    }
