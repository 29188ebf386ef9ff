"""Stage `evaluate@<variant>`: score a variant's replies by text metrics, without loading the policy.

    python -m stages.evaluate sft-dpo

reads `data/replies/sft-dpo.parquet` and writes `data/scores/text/sft-dpo.parquet` (scores by example),
`metrics/text/sft-dpo.json` (flat: overlap, diversity, BERTScore, preference accuracy, custom metrics) and
`metrics/text/sft-dpo.signature.json` (versions and settings that the metrics depend on).
"""

from __future__ import annotations

from pathlib import Path

from attune.config.params import load
from attune.config.schema import Params
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.io import write_frame, write_json
from attune.runtime.launch import run as in_ranks
from attune.scoring.common.replies import engine, read
from attune.scoring.text.scores import bertscores, evaluate, score, signature

REPLIES = Path("data/replies")
SCORES = Path("data/scores/text")
METRICS = Path("metrics/text")
DIGITS = 4


def main(variant: str, params: Params) -> None:
    """Write the scores, metrics and signature of a variant."""
    path = REPLIES / f"{variant}.parquet"
    replies = read(path)
    bert = bertscores(replies, params)

    def write() -> None:
        scores = score(replies, bert)
        write_frame(SCORES / f"{variant}.parquet", scores)
        metrics = {name: round(value, DIGITS) for name, value in evaluate(replies, scores).items()}
        write_json(METRICS / f"{variant}.json", metrics)
        write_json(METRICS / f"{variant}.signature.json", signature(replies, params) | engine(path))

    on_main_process(write)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of variants")
        params = load()
        in_ranks(lambda: main(arguments.variant, params), params.hardware)
