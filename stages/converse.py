"""Stage `converse@<variant>`: conversations of four turns with people, scripted or played.

    python -m stages.converse sft-dpo

plays the scripts of `data/converse`, whose next message depends by rules on the reply, and writes
`data/scores/converse/sft-dpo.parquet` (transcripts, distress after each reply, scores), `metrics/converse/sft-dpo.json`
and `metrics/converse/sft-dpo.signature.json`. With `converse.seeker: endpoint` an OpenAI-compatible endpoint says all
but the first message; the cost is printed and one request is sent before the model is loaded, and answers are cached
by content. The settings of `generate` hold, with the built-in engine. A variant without a model has no conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params, Variant
from attune.data.dialogue import Example
from attune.pairs.endpoint import CHARACTERS_A_TOKEN, Request, answers_file, ask, cost, reached_by
from attune.runtime.arrow_stream import write_table
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import broadcast_from_main, on_main_process
from attune.runtime.errors import reported
from attune.runtime.io import read_prompt, sha256_of, write_json
from attune.runtime.launch import run as in_ranks
from attune.scoring.converse.played import PLACES, longest, message, prompt
from attune.scoring.converse.scores import as_table, metrics
from attune.scoring.converse.seeker import SILENCE, Conversation, Script, converse, read_scripts

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


def player(
    scripts: Sequence[Script], params: Params, answers: Path
) -> Callable[[Sequence[Conversation]], list[str | None]]:
    """A function that gives the next messages of people by the endpoint, None where it gives none.

    It prints what the messages of `scripts` cost at most, and sends a first request, so that a wrong address, model or
    key is told before the variant's model is loaded. The temperature is 0: the same replies get the same messages.

    Args:
        scripts: at least one.
        params: of the run.
        answers: the cache.

    Raises:
        UserError: as `ask`, and as `read_prompt`.
    """
    settings = params.converse
    template = read_prompt(Path(settings.prompt), PLACES, "converse.prompt")
    llm = reached_by(params.llm, settings)

    def play(conversations: Sequence[Conversation]) -> list[str | None]:
        requests = [Request(prompt(template, one), 0.0, params.seed) for one in conversations]
        return [message(text) for text in broadcast_from_main(lambda: ask(llm, params.endpoint, requests, answers))]

    first = Conversation(scripts[0])
    first.hear(SILENCE)
    lengths = params.generate.max_new_tokens * CHARACTERS_A_TOKEN, settings.max_tokens * CHARACTERS_A_TOKEN
    texts = [prompt(template, first), *longest(template, scripts, *lengths)]
    told = (
        f"{llm.model} plays {len(scripts)} people in at most {len(texts)} requests, fewer where answers are cached: "
        f"{cost(llm, params.endpoint, texts)}"
    )
    on_main_process(lambda: print(told, flush=True))
    play([first])
    return play


def main(variant: str, params: Params, answers_at: Path | None = None) -> None:
    """Write the transcripts, scores, metrics and signature of a variant.

    Args:
        variant: a key of `probed`.
        params: of the run.
        answers_at: the cache of an endpoint's answers; None: that of the project.
    """
    settings = named(params.probed, variant, "probed")
    scripts = [] if settings.replies_file else read_scripts(SCRIPTS, params.converse.limit)
    by_endpoint = params.converse.seeker == "endpoint" and scripts
    play = player(scripts, params, answers_at or answers_file()) if by_endpoint else None
    played = converse(scripts, answers(settings, params), play) if scripts else []

    def write() -> None:
        write_table(SCORES / f"{variant}.parquet", as_table(played))
        write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in metrics(played).items()})
        write_json(METRICS / f"{variant}.signature.json", signature(played, params))

    on_main_process(write)


def signature(played: Sequence[Conversation], params: Params) -> dict[str, str]:
    """The scripts, and who said their messages."""
    if not played:
        return {"converse_scripts": "none: there is no model"}
    found = {"converse_scripts": f"{len(played)} of {SCRIPTS}, sha256 {sha256_of(SCRIPTS)}"}
    settings = params.converse
    if settings.seeker == "endpoint":
        later = sum(len(one.replies) - 1 for one in played)
        found |= {
            "converse_seeker": f"{settings.model} at {settings.base_url}, temperature 0",
            "converse_prompt": f"{settings.prompt}, sha256 {sha256_of(Path(settings.prompt))}",
            "converse_scripted": f"{sum(one.scripted for one in played)} of {later} messages, which it did not give",
        }
    return found


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of probed")
        params = load()
        in_ranks(lambda: main(arguments.variant, params), params.hardware)
