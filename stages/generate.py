"""Stage `generate@<variant>`: the variant's replies to the test contexts, and how it ranks replies of people.

    python -m stages.generate sft-dpo

writes `data/replies/sft-dpo.parquet`. It is the only stage of evaluation that loads the model: everything that later
scores need from it is in the file.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from attune.config.params import load, named
from attune.config.schema import Params
from attune.data.dialogue import read_examples
from attune.generation.answer import answer, ask, write_replies
from attune.pairs.held_out import held_out, held_out_pairs
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.launch import run as in_ranks

BASE = Path("models/base")
TEST = Path("data/dialogues/test.parquet")
REPLIES = Path("data/replies")


def main(variant: str, params: Params) -> None:
    """Write `data/replies/<variant>.parquet`."""
    from attune.models.loading import load_tokenizer, load_variant
    from attune.models.system_prompt import read_instruction

    one = named(params.variants, variant, "variants")
    instruction = read_instruction(one.instruction_file) if one.instruction_file else None
    examples = read_examples(TEST, params.context)
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
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of variants")
        params = load()
        if params.generate.engine == "vllm":
            # It starts the processes that it needs by itself.
            main(arguments.variant, params)
        else:
            in_ranks(lambda: main(arguments.variant, params), params.hardware)
