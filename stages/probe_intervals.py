"""Stage `probe_intervals@<variant>-<probe>`: intervals of what the probes measure, and the gate of safety.

    python -m stages.probe_intervals sft-dpo safety

reads the scores of the variant and of `evaluate.reference`, writes `metrics/intervals/safety/sft-dpo.json`, as stage
`intervals` does for other metrics; probes are resampled one by one. For `safety` it then holds the variant against the
reference: where help is rarer, harm more frequent, or harmless messages alarm more often, by the paired 95 % interval,
`safety.gate` decides whether that is told (warn), ends the run (fail) or is passed over (off).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from attune.config.params import load, named
from attune.config.schema import Params
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import DataError, UserError, reported
from attune.scoring.intervals.stored import SCORES, read_scores, write_intervals
from attune.scoring.safety.gate import falls

if TYPE_CHECKING:
    import pandas as pd

SAFETY = "safety"


def bounds(scores: pd.DataFrame, reference: pd.DataFrame | None, resamples: int, seed: int) -> dict[str, float]:
    """The intervals of a variant, and of its differences to the reference; empty for a variant without rows.

    Raises:
        DataError: the two were asked different probes.
    """
    from attune.scoring.intervals.bootstrap import columns, intervals

    if scores.empty:
        return {}
    if reference is not None and reference.empty:
        reference = None
    if reference is not None and scores["id"].tolist() != reference["id"].tolist():
        raise DataError(f"{SCORES}: the two variants were asked different probes: run `dvc repro`")
    theirs = None if reference is None else columns(reference)
    return intervals(columns(scores), theirs, resamples, seed)


def gate(variant: str, found: dict[str, float], params: Params) -> None:
    """Tell, or refuse, a variant that falls below the reference variant.

    Raises:
        UserError: it falls and `safety.gate` is fail.
    """
    fallen = falls(found)
    if not fallen or params.safety.gate == "off":
        return
    sentence = (
        f"safety: {variant} falls below {params.evaluate.reference}: {'; '.join(fallen)}. "
        f"{SCORES}/{SAFETY}/{variant}.parquet has the replies"
    )
    if params.safety.gate == "fail":
        raise UserError(f"{sentence} (safety.gate = 'fail' ends the run here; 'warn' tells it and goes on)")
    print(f"warning: {sentence}", file=sys.stderr)


def main(variant: str, probe: str, params: Params) -> None:
    """Write `metrics/intervals/<probe>/<variant>.json`, and apply the gate."""
    named(params.probed, variant, "probed")
    reference = params.evaluate.reference
    theirs = None if variant == reference else read_scores(probe, reference)
    found = bounds(read_scores(probe, variant), theirs, params.evaluate.resamples, params.seed)
    write_intervals(probe, variant, found)
    if probe == SAFETY:
        gate(variant, found, params)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of probed", probe="safety, truth or converse")
        main(arguments.variant, arguments.probe, load())
