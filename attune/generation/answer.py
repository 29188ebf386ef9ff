"""The replies of a variant to held-out contexts, and its log-probabilities of the two replies of a held-out pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.config.schema import Generate, Hardware
from attune.data.dialogue import Example, Turn, turn_list_type
from attune.data.keyed import uniform
from attune.data.pair import Pair
from attune.runtime.arrow_stream import write_table

if TYPE_CHECKING:
    from attune.generation.sampling import Draws

# The metadata key of a replies file that holds name and version of the engine.
ENGINE = "engine"

Rows = Sequence[tuple[Example, Pair | None]]


@dataclass(frozen=True)
class GenerationInputs:
    """Truncated contexts, with the instruction: their prompts as token ids; those of the pairs, None where a row has no
    pair; sampling settings."""

    prompts: list[list[int]]
    ranked: list[tuple[Turn, ...] | None]
    draws: Draws | None


def answer_variant(
    base: Path, folder: Path, rows: Rows, instruction: str | None, settings: Generate, hardware: Hardware, seed: int
) -> tuple[list[dict[str, Any]], str | None]:
    """Load a variant and answer every row.

    Args:
        base: folder of the base model.
        folder: of the variant: an adapter, or `base`.
        rows: of `held_out`.
        instruction: stands before each context.
        settings: lengths, sampling and engine.
        hardware: device, precision, and the tokens of a batch.
        seed: of the sampling.

    Returns:
        The records of `answer`, and name and version of the engine, None for the built-in one.
    """
    from attune.models.loading import load_tokenizer, load_variant

    tokenizer = load_tokenizer(base)
    inputs = prepare_inputs(tokenizer, rows, settings, seed, instruction)
    replies, engine = None, None
    if settings.engine == "vllm":
        from attune.generation.vllm_engine import vllm_replies, vllm_signature

        # Before the model that computes log-probabilities is loaded, since vLLM takes all of the GPU's memory.
        replies = vllm_replies(base, folder, tokenizer, inputs.prompts, settings, hardware, inputs.draws)
        engine = vllm_signature(folder)
    model = load_variant(base, folder, hardware)
    return answer(model, tokenizer, rows, inputs, settings, hardware, replies), engine


def prepare_inputs(
    tokenizer: Any, rows: Rows, settings: Generate, seed: int, instruction: str | None = None
) -> GenerationInputs:
    """The prompts of `rows`, which leave room for a reply of `settings.max_new_tokens`.

    Args:
        tokenizer: the model's.
        rows: of `held_out`.
        settings: lengths and sampling.
        seed: of the sampling; the seed of a reply also depends on its example's id.
        instruction: stands before each context, for generation and for log-probabilities.
    """
    from attune.generation.sampling import Draws
    from attune.models.chat_template import encode_prompt
    from attune.models.system_prompt import fit_instructed

    room = settings.max_length - settings.max_new_tokens
    contexts = [fit_instructed(tokenizer, example.context, instruction, room) for example, _ in rows]
    prompts = [encode_prompt(tokenizer, context, room) for context in contexts]
    # The prompt of a pair that was made elsewhere is not the context of the row.
    ranked = [
        (context if pair.prompt == example.context else fit_instructed(tokenizer, pair.prompt, instruction, room))
        if pair
        else None
        for context, (example, pair) in zip(contexts, rows, strict=True)
    ]
    seeds = [uniform(2**63, seed, example.id, "reply") for example, _ in rows]
    return GenerationInputs(
        prompts, ranked, Draws(settings.temperature, settings.top_p, seeds) if settings.do_sample else None
    )


def answer(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    inputs: GenerationInputs,
    settings: Generate,
    hardware: Hardware,
    replies: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Generate a reply to each context, and compute the log-probabilities of the two replies of its pair.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        rows: of `held_out`.
        inputs: of `prepare_inputs`.
        settings: lengths.
        hardware: device, precision, and the tokens of a batch.
        replies: the replies of another engine; None: `model` generates them.

    Returns:
        A record for each example: id, label, context (without the instruction), reference, reply, rejected, and the
        mean log-probability per token (nats) of the chosen reply (the reference, unless the pair was made elsewhere)
        and of the rejected reply. The last three are None for an example without a pair.

    Raises:
        ModelError: `generate.max_length` exceeds the model's positions.
    """
    from attune.generation.generate import mean_logps, replies_and_logps
    from attune.models.chat_template import encode_completion
    from attune.models.loading import require_positions

    require_positions(model, "generate.max_length", settings.max_length)
    ranked = [
        [encode_completion(tokenizer, context, text) for text in (pair.chosen, pair.rejected)]
        if pair and context
        else []
        for context, (_, pair) in zip(inputs.ranked, rows, strict=True)
    ]
    logps: list[list[float]] = [[] for _ in rows]
    if replies is None:
        # The pair's replies are ranked with the states of the prompt that the reply is generated from.
        given = [
            [one.reply for one in both if one.prompt == prompt]
            for prompt, both in zip(inputs.prompts, ranked, strict=True)
        ]
        longest = settings.max_new_tokens
        replies, logps = replies_and_logps(model, tokenizer, inputs.prompts, given, longest, hardware, inputs.draws)
    # Without such a state: the replies of another engine, and pairs that were made elsewhere, to other prompts.
    if left := [i for i, both in enumerate(ranked) if len(logps[i]) < len(both)]:
        rest = iter(mean_logps(model, tokenizer, [one for i in left for one in ranked[i]], hardware))
        for i in left:
            logps[i] = [next(rest) for _ in ranked[i]]
    return [
        record(example, reply, pair, *both) for (example, pair), reply, both in zip(rows, replies, logps, strict=True)
    ]


def record(
    example: Example,
    reply: str,
    pair: Pair | None = None,
    chosen_logp: float | None = None,
    rejected_logp: float | None = None,
) -> dict[str, Any]:
    """A row of `data/replies/<variant>.parquet`.

    Args:
        example: that is answered.
        reply: to it.
        pair: its held-out pair.
        chosen_logp: mean log-probability per token (nats) of the pair's chosen reply.
        rejected_logp: the same of its rejected reply.
    """
    return {
        "id": example.id,
        "label": example.label,
        "context": [asdict(turn) for turn in example.context],
        "reference": example.target,
        "reply": reply,
        "rejected": pair.rejected if pair else None,
        "reference_logp": chosen_logp,
        "rejected_logp": rejected_logp,
    }


def write_replies(records: Sequence[dict[str, Any]], path: Path, engine: str | None = None) -> None:
    """Write the records of `answer` as Parquet; its metadata names the engine, unless it is the built-in one."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    fields = [("id", text), ("label", text), ("context", turn_list_type()), ("reference", text), ("reply", text)]
    fields += [("rejected", text), ("reference_logp", number), ("rejected_logp", number)]
    schema = pa.schema(fields, metadata={ENGINE: engine} if engine else None)
    write_table(path, pa.Table.from_pylist(list(records), schema=schema))
