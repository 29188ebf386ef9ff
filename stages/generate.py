"""Stage `generate@<variant>`: the variant's replies to held-out contexts, and its log-probabilities of human replies.

    python -m stages.generate sft-dpo

writes `data/replies/sft-dpo.parquet`, with replies to the contexts of `generate.split`. It holds everything that the
scoring stages need, so that they do not load the model. A variant whose replies were made elsewhere has them from its
file, and no log-probabilities.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from attune.config.params import load, named
from attune.config.schema import Generate, Params
from attune.data.examples import read_examples
from attune.generation.answer import answer_variant, write_replies
from attune.generation.made_elsewhere import NO_MODEL, left_out, match, read, records
from attune.pairs.held_out import held_out, held_out_pairs
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.io import sha256_of
from attune.runtime.launch import run as in_ranks

BASE = Path("models/base")
REPLIES = Path("data/replies")


def main(variant: str, params: Params) -> None:
    """Write `data/replies/<variant>.parquet`."""
    from attune.models.system_prompt import read_instruction

    settings = named(params.variants, variant, "variants")
    if file := settings.replies_file:
        on_main_process(lambda: take_replies(file, variant, params))
        return
    instruction = read_instruction(settings.instruction_file) if settings.instruction_file else None
    examples = read_examples(params.generate.dialogues, params.context)
    pairs = partial(held_out_pairs, examples=examples, params=params)
    rows = held_out(examples, pairs, params.generate.limit, params.seed)
    own = {"max_new_tokens": settings.max_new_tokens} if settings.max_new_tokens else {}
    decoding = Generate(**vars(params.generate) | own)
    records, engine = answer_variant(
        BASE, Path(settings.model), rows, instruction, decoding, params.hardware, params.seed
    )
    on_main_process(lambda: write_replies(records, REPLIES / f"{variant}.parquet", engine))


def take_replies(path: Path, variant: str, params: Params) -> None:
    """Write `data/replies/<variant>.parquet` from a file of replies, and tell how many examples it answers.

    Raises:
        DataError: the file is broken, or its replies are not to the examples.
    """
    rows, dropped = read(path)
    examples = read_examples(params.generate.dialogues, params.context)
    subset = [example for example, _ in held_out(examples, lambda _: (), params.generate.limit, params.seed)]
    replies, told = match(rows, examples, subset, path, params.generate.split)
    print("; ".join(filter(None, (told, left_out(dropped)))), file=sys.stderr)
    write_replies(records(replies, subset), REPLIES / f"{variant}.parquet", f"{NO_MODEL}: sha256 {sha256_of(path)}")


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of variants")
        params = load()
        if params.generate.engine == "vllm":
            # vLLM starts its worker processes itself.
            main(arguments.variant, params)
        else:
            in_ranks(lambda: main(arguments.variant, params), params.hardware)
