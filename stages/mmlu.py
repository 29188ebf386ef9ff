"""Stage `mmlu@<variant>`: general knowledge after alignment, measured by MMLU.

    python -m stages.mmlu <variant>

writes `metrics/mmlu/<variant>.json` (shares times 100, 4 digits), `data/scores/mmlu/<variant>.parquet` (scores by
question) and `metrics/mmlu/<variant>.signature.json`. Prompts, versions and groups are those of lm-evaluation-harness;
the rows are local files. A variant without a model, whose replies were made elsewhere, has no metrics and no scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.params import load, named
from attune.config.schema import Params
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.io import write_frame, write_json
from attune.runtime.launch import run as in_ranks
from attune.scoring.mmlu import harness
from attune.scoring.mmlu.measure import measure

if TYPE_CHECKING:
    import pandas as pd

BASE = Path("models/base")
RAW = Path("data/raw")
SAMPLE = Path("data/sample/mmlu")
SCORES = Path("data/scores/mmlu")
METRICS = Path("metrics/mmlu")
DIGITS = 4


def main(variant: str, params: Params) -> None:
    """Write the metrics, the scores by question and the signature of a variant.

    Raises:
        UserError: there is no such variant, or the rows do not fit the task.
    """
    from attune.models.loading import load_tokenizer, load_variant, variant_signature

    settings = named(params.variants, variant, "variants")
    if settings.replies_file:
        on_main_process(lambda: skip(variant))
        return
    corpus, folder = params.mmlu.corpus, Path(settings.model)
    rows = harness.read(SAMPLE if corpus == "sample" else RAW / corpus, params.mmlu.shots, params.mmlu.limit)
    model = load_variant(BASE, folder, params.hardware, merge=False)
    metrics, answers, signature = measure(model, load_tokenizer(BASE), rows, params.mmlu, params.hardware)
    signature = variant_signature(BASE, folder) | signature
    on_main_process(lambda: write(variant, metrics, answers, signature))


def write(variant: str, metrics: dict[str, float], answers: pd.DataFrame, signature: dict[str, str]) -> None:
    """Write the three files of a variant."""
    write_frame(SCORES / f"{variant}.parquet", answers)
    write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in metrics.items()})
    write_json(METRICS / f"{variant}.signature.json", signature)


def skip(variant: str) -> None:
    """Write that a variant without a model has no metrics."""
    import pandas as pd

    none = pd.DataFrame(
        {"id": pd.Series(dtype=str)} | {name: pd.Series(dtype=float) for name in harness.ANSWER_COLUMNS}
    )
    write(variant, {}, none, {"mmlu": "not measured: the variant has replies and no model"})


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of variants")
        params = load()
        in_ranks(lambda: main(arguments.variant, params), params.hardware)
