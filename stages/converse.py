"""Stage `converse@<variant>`: conversations of four turns with scripted people.

    python -m stages.converse sft-dpo

plays the scripts of `data/converse`, whose next message depends by rules on the reply, and writes
`data/scores/converse/sft-dpo.parquet` (transcripts, distress after each reply, scores), `metrics/converse/sft-dpo.json`
and `metrics/converse/sft-dpo.signature.json`. The settings of `generate` hold, with the built-in engine. A variant
without a model has no conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params, Variant
from attune.data.dialogue import Example
from attune.runtime.arrow_stream import write_table
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.io import sha256_of, write_json
from attune.runtime.launch import run as in_ranks
from attune.scoring.converse.scores import as_table, metrics
from attune.scoring.converse.seeker import Conversation, converse, read_scripts

BASE = Path("models/base")
SCRIPTS = Path("data/converse/scripts.jsonl")
SCORES = Path("data/scores/converse")
METRICS = Path("metrics/converse")
DIGITS = 4


def answers(settings: Variant, params: Params) -> Callable[[Sequence[Conversation]], list[str]]:
    """A function that gives the variant's replies to conversations."""
    from attune.generation.answer import prepare_inputs
    from attune.generation.generate import generate_replies
    from attune.models.loading import load_tokenizer, load_variant, require_positions
    from attune.models.system_prompt import read_instruction

    model: Any = load_variant(BASE, Path(settings.model), params.hardware)
    require_positions(model, "generate.max_length", params.generate.max_length)
    tokenizer = load_tokenizer(BASE)
    told = read_instruction(settings.instruction_file) if settings.instruction_file else None

    def answer(conversations: Sequence[Conversation]) -> list[str]:
        rows = [
            (Example(f"{one.script.id}/{len(one.replies)}", one.script.emotion, tuple(one.turns), ""), None)
            for one in conversations
        ]
        inputs = prepare_inputs(tokenizer, rows, params.generate, params.seed, told)
        length = params.generate.max_new_tokens
        return generate_replies(model, tokenizer, inputs.prompts, length, params.hardware, inputs.draws)

    return answer


def main(variant: str, params: Params) -> None:
    """Write the transcripts, scores, metrics and signature of a variant."""
    settings = named(params.probed, variant, "probed")
    scripts = [] if settings.replies_file else read_scripts(SCRIPTS, params.converse.limit)
    played = converse(scripts, answers(settings, params)) if scripts else []

    def write() -> None:
        write_table(SCORES / f"{variant}.parquet", as_table(played))
        write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in metrics(played).items()})
        scripted = f"{len(scripts)} of {SCRIPTS}, sha256 {sha256_of(SCRIPTS)}" if scripts else "none: there is no model"
        write_json(METRICS / f"{variant}.signature.json", {"converse_scripts": scripted})

    on_main_process(write)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of probed")
        params = load()
        in_ranks(lambda: main(arguments.variant, params), params.hardware)
