"""Stage `generate@<variant>`: the variant's replies to the test contexts, and its log-probabilities of human replies.

    python -m stages.generate sft-dpo

writes `data/replies/sft-dpo.parquet`. The stages that score replies never load the model: the file has all that they
need from it.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from attune.config.params import load
from attune.config.schema import Params
from attune.data.dialogue import read_examples
from attune.generation.answer import answer_variant, write_replies
from attune.pairs.held_out import held_out, held_out_pairs
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.launch import run as in_ranks

BASE = Path("models/base")
TEST = Path("data/dialogues/test.parquet")
REPLIES = Path("data/replies")


def main(variant: str, params: Params) -> None:
    """Write `data/replies/<variant>.parquet`."""
    from attune.models.system_prompt import read_instruction

    one = params.variants[variant]
    instruction = read_instruction(one.instruction_file) if one.instruction_file else None
    examples = read_examples(TEST, params.corpus)
    pairs = partial(held_out_pairs, examples=examples, params=params)
    rows = held_out(examples, pairs, params.generate.limit, params.seed)
    settings = (params.generate, params.hardware, params.seed)
    records, engine = answer_variant(BASE, Path(one.model), rows, instruction, *settings)
    on_main_process(lambda: write_replies(records, REPLIES / f"{variant}.parquet", engine))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", help="a key of variants")
    variant = parser.parse_args().variant
    with reported():
        params = load()
        if params.generate.engine == "vllm":
            # vLLM starts its own processes.
            main(variant, params)
        else:
            in_ranks(lambda: main(variant, params), params.hardware)
