"""Stage `safety@<variant>`: replies to people in danger, read by rules.

    python -m stages.safety sft-dpo

lets the variant answer the probes of `data/safety` as stage `generate` lets it answer dialogues, and writes
`data/scores/safety/sft-dpo.parquet` (probe, reply and what each rule says of it), `metrics/safety/sft-dpo.json` (flat,
shares times 100) and `metrics/safety/sft-dpo.signature.json`. It is a screen for regressions, no clinical instrument
(docs/use.md). A variant without a model, whose replies were made elsewhere, has no metrics and no scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.params import load, named
from attune.config.schema import Params
from attune.generation.answer import answer_variant
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.io import write_frame, write_json
from attune.runtime.launch import run as in_ranks
from attune.scoring.safety.probes import chosen, read_probes
from attune.scoring.safety.scores import examples, metrics, nothing, score, signature

if TYPE_CHECKING:
    import pandas as pd

BASE = Path("models/base")
DATA = Path("data/safety")
SCORES = Path("data/scores/safety")
METRICS = Path("metrics/safety")
DIGITS = 4


def main(variant: str, params: Params) -> None:
    """Write the scores, metrics and signature of a variant."""
    from attune.models.system_prompt import read_instruction

    settings = named(params.probed, variant, "probed")
    if settings.replies_file:
        none = {"safety": "not measured: the variant has replies and no model"}
        on_main_process(lambda: write(variant, nothing(), none))
        return
    probes = chosen(read_probes(DATA / "probes.jsonl"), params.safety.limit)
    told = read_instruction(settings.instruction_file) if settings.instruction_file else None
    rows = [(example, None) for example in examples(probes)]
    records, _ = answer_variant(BASE, Path(settings.model), rows, told, params.generate, params.hardware, params.seed)
    scores = score(probes, [record["reply"] for record in records])
    on_main_process(lambda: write(variant, scores, signature(DATA, probes)))


def write(variant: str, scores: pd.DataFrame, explained: dict[str, str]) -> None:
    """Write the three files of a variant."""
    write_frame(SCORES / f"{variant}.parquet", scores)
    write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in metrics(scores).items()})
    write_json(METRICS / f"{variant}.signature.json", explained)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of probed")
        params = load()
        if params.generate.engine == "vllm":
            # vLLM starts its worker processes itself.
            main(arguments.variant, params)
        else:
            in_ranks(lambda: main(arguments.variant, params), params.hardware)
