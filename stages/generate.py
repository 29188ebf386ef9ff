"""Stage `generate@<variant>`: the variant's replies to the test contexts, and how it ranks replies of people.

    python -m stages.generate sft-dpo

writes `data/replies/sft-dpo.parquet`. It is the only stage of evaluation that loads the model: everything that later
scores need from it is in the file.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.params import load
from attune.config.schema import Params
from attune.data.dialogue import read_examples
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.launch import run as in_ranks

if TYPE_CHECKING:
    pass
from attune.generation.answer import answer, ask, write_replies
from attune.pairs.held_out import held_out, held_out_pairs

BASE = Path("models/base")
TEST = Path("data/dialogues/test.parquet")
REPLIES = Path("data/replies")


def main(variant: str, params: Params) -> None:
    """Write `data/replies/<variant>.parquet`."""
    from attune.models.loading import load_tokenizer, load_variant
    from attune.models.system_prompt import read_instruction

    one = params.variants[variant]
    instruction = read_instruction(one.instruction_file) if one.instruction_file else None
    examples = read_examples(TEST, params.corpus)
    pairs = partial(held_out_pairs, examples=examples, params=params)
    rows = held_out(examples, pairs, params.generate.limit, params.seed)
    tokenizer, settings = load_tokenizer(BASE), (params.generate, params.hardware)
    asked = ask(tokenizer, rows, params.generate, params.seed, instruction)
    replies, engine = None, None
    if params.generate.engine == "vllm":
        from attune.generation.vllm_engine import vllm_replies, vllm_signature

        # Before the model that ranks is loaded: vLLM takes the GPU to itself.
        replies = vllm_replies(BASE, Path(one.model), tokenizer, asked.prompts, *settings, asked.draws)
        engine = vllm_signature()
    model = load_variant(BASE, Path(one.model), params.hardware)
    records = answer(model, tokenizer, rows, asked, *settings, replies)
    on_main_process(lambda: write_replies(records, REPLIES / f"{variant}.parquet", engine))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", help="a key of variants")
    variant = parser.parse_args().variant
    with reported():
        params = load()
        if params.generate.engine == "vllm":
            # It starts the processes that it needs by itself.
            main(variant, params)
        else:
            in_ranks(lambda: main(variant, params), params.hardware)
