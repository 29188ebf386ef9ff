"""Stage `truth@<variant>`: whether warmth costs truth, by TruthfulQA and MMLU's subjects on health.

    python -m stages.truth sft-dpo

asks the questions as they are, after a sad sentence, and with a false belief of the user, and writes
`metrics/truth/sft-dpo.json` (accuracies times 100, margins in nats a byte), `data/scores/truth/sft-dpo.parquet` (scores
by question) and `metrics/truth/sft-dpo.signature.json`. The prompts and the versions are those of
lm-evaluation-harness's truthfulqa_mc1 and MMLU; the rows are local files. `truth.medical` names the subjects of MMLU,
whose rows, form, shots and limit are those of stage `mmlu`. A variant without a model has no metrics and no scores.
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
from attune.scoring.truth import medical
from attune.scoring.truth.measure import measure, nothing
from attune.scoring.truth.questions import read

if TYPE_CHECKING:
    import pandas as pd

BASE = Path("models/base")
RAW = Path("data/raw")
SAMPLE = Path("data/sample")
SCORES = Path("data/scores/truth")
METRICS = Path("metrics/truth")
DIGITS = 4


def main(variant: str, params: Params) -> None:
    """Write the metrics, the scores by question and the signature of a variant.

    Raises:
        UserError: there is no such variant, or the rows are malformed.
    """
    from attune.models.loading import load_tokenizer, load_variant, variant_signature

    settings = named(params.probed, variant, "probed")
    if settings.replies_file:
        none = {"truth": "not measured: the variant has replies and no model"}
        on_main_process(lambda: write(variant, {}, nothing(), none))
        return
    folder, chosen = Path(settings.model), (params.truth, params.mmlu)
    questions = read(rows(params.truth.corpus, "truthfulqa"), params.truth.limit)
    subjects = medical.read(rows(params.mmlu.corpus, "mmlu"), params.truth.medical, params.mmlu)
    model = load_variant(BASE, folder, params.hardware, merge=False)
    metrics, scores, signature = measure(model, load_tokenizer(BASE), questions, subjects, chosen, params.hardware)
    signature = variant_signature(BASE, folder) | signature
    on_main_process(lambda: write(variant, metrics, scores, signature))


def rows(corpus: str, name: str) -> Path:
    """The folder of a corpus; `sample` is the embedded one of that name."""
    return SAMPLE / name if corpus == "sample" else RAW / corpus


def write(variant: str, metrics: dict[str, float], scores: pd.DataFrame, signature: dict[str, str]) -> None:
    """Write the three files of a variant."""
    write_frame(SCORES / f"{variant}.parquet", scores)
    write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in metrics.items()})
    write_json(METRICS / f"{variant}.signature.json", signature)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of probed")
        params = load()
        in_ranks(lambda: main(arguments.variant, params), params.hardware)
