"""Stage `intervals@<variant>-<scorer>`: bootstrap intervals of a variant's metrics.

    python -m stages.intervals sft-dpo epitome

reads the scores by example (of scorer mmlu: by question) of the variant and of `evaluate.reference`, and writes
`metrics/intervals/epitome/sft-dpo.json`: for every metric with scores by example, and for the corpus metrics computed
from sums over examples (BLEU, `dbt_gap`, `behaviour_reflection_to_question`), `<metric>.low` and `<metric>.high`; for a
variant other than the reference also `<metric>.diff` (variant minus reference), `<metric>.diff_low` and
`<metric>.diff_high`. A variant whose replies were made elsewhere has no scores of mmlu, and no intervals of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attune.config.params import load
from attune.config.schema import Params
from attune.data.dialogue import Targets, dialogue_of
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import DataError, reported
from attune.scoring.intervals.stored import SCORES, read_scores, write_intervals

if TYPE_CHECKING:
    import pandas as pd

MMLU = "mmlu"


def compare(
    scores: pd.DataFrame,
    reference: pd.DataFrame | None,
    targets: Targets,
    resamples: int,
    seed: int,
    partial: bool = False,
) -> dict[str, float]:
    """The intervals of a variant's metrics, and of their differences from the reference variant if it is given.

    Examples of the same dialogue (several if `targets` is every) are resampled together.

    Args:
        scores: by example, in the order of their ids.
        reference: the same of the reference variant, or None.
        targets: how an example's id contains that of its dialogue.
        resamples: of the bootstrap.
        seed: of the resamples.
        partial: the replies of one of the two were made elsewhere and may not be to all examples: the differences are
            then over the examples that both answer.

    Raises:
        DataError: the two were scored on different examples; with `partial`, on no common one.
    """
    from attune.scoring.intervals.bootstrap import columns, intervals

    def bounds(ours: pd.DataFrame, theirs: pd.DataFrame | None) -> dict[str, float]:
        dialogues = [dialogue_of(name, targets) for name in ours["id"]]
        return intervals(columns(ours), None if theirs is None else columns(theirs), resamples, seed, dialogues)

    if reference is None or scores["id"].tolist() == reference["id"].tolist():
        return bounds(scores, reference)
    ours, theirs = (one[one["id"].isin(other["id"])] for one, other in ((scores, reference), (reference, scores)))
    if not partial or ours.empty:
        differ = len(set(scores["id"]) ^ set(reference["id"]))
        raise DataError(f"{SCORES}: the two variants differ in {differ} examples: run `dvc repro`")
    differences = {name: value for name, value in bounds(ours, theirs).items() if ".diff" in name}
    return dict(sorted((bounds(scores, None) | differences).items()))


def main(variant: str, scorer: str, params: Params) -> None:
    """Write `metrics/intervals/<scorer>/<variant>.json`."""
    settings = params.evaluate
    reference = None if variant == settings.reference else read_scores(scorer, settings.reference)
    scores = read_scores(scorer, variant)
    partial = any(params.variants[name].replies_file for name in (variant, settings.reference))
    # Questions have no dialogues: each is drawn by itself.
    targets: Targets = "last" if scorer == MMLU else params.context.targets
    if scorer == MMLU and reference is not None and reference.empty:
        reference = None
    unscored = scorer == MMLU and scores.empty
    bounds = {} if unscored else compare(scores, reference, targets, settings.resamples, params.seed, partial)
    write_intervals(scorer, variant, bounds)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of variants", scorer="text, mmlu or a key of classifiers")
        main(arguments.variant, arguments.scorer, load())
