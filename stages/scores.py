"""Stage `scores@<variant>-<classifier>`: classifier scores of a variant's replies, compared with the human replies.

    python -m stages.scores sft-dpo epitome

reads `data/replies/sft-dpo.parquet`, `data/references/epitome.parquet` and `models/epitome`, and writes
`data/scores/epitome/sft-dpo.parquet` (scores by example), `metrics/epitome/sft-dpo.json` (flat) and
`metrics/epitome/sft-dpo.signature.json` (versions and settings that the metrics depend on). The policy is not loaded.
"""

from __future__ import annotations

from pathlib import Path

from attune.classifiers import by_key
from attune.config.params import load, named
from attune.config.schema import Params
from attune.runtime.arrow_stream import write_table
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.io import write_json
from attune.runtime.launch import run as in_ranks
from attune.scoring.common.replies import read, read_references

REPLIES = Path("data/replies")
REFERENCES = Path("data/references")
MODELS = Path("models")
SCORES = Path("data/scores")
METRICS = Path("metrics")
DIGITS = 4


def main(variant: str, name: str, params: Params) -> None:
    """Write the scores and metrics of a variant."""
    import pyarrow as pa

    from attune.compute.process import set_up_process

    named(params.variants, variant, "variants")
    named(params.classifiers, name, "classifiers")
    set_up_process(params.hardware)
    classifier = by_key(name)
    replies = read(REPLIES / f"{variant}.parquet")
    references = read_references(REFERENCES / f"{name}.parquet", replies, f"references@{name}")
    columns = classifier.score(MODELS / name, replies, references, params.hardware)

    def write() -> None:
        table = pa.table({"id": replies["id"].tolist(), "label": replies["label"].tolist(), **columns})
        write_table(SCORES / name / f"{variant}.parquet", table)
        metrics = {key: round(value, DIGITS) for key, value in classifier.metrics(columns).items()}
        write_json(METRICS / name / f"{variant}.json", metrics)
        signature = {f"{name}_examples": str(len(replies))} | classifier.signature(MODELS / name)
        write_json(METRICS / name / f"{variant}.signature.json", signature)

    on_main_process(write)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of variants", classifier="a key of classifiers")
        params = load()
        in_ranks(lambda: main(arguments.variant, arguments.classifier, params), params.hardware)
