"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.config.schema import Generate, Hardware
from attune.data.dialogue import Example, Turn, turn_list_type
from attune.data.keyed import uniform
from attune.data.pair import Pair
from attune.runtime.io import write_table

if TYPE_CHECKING:
    from attune.generation.sampling import Draws

# In the metadata of a file of replies: name and version of the engine that wrote them.
ENGINE = "engine"


@dataclass(frozen=True)
class GenerationInputs:
    """What is asked: the contexts as they fit, with the instruction, their token ids, and how replies are drawn."""

    contexts: list[tuple[Turn, ...]]
    prompts: list[list[int]]
    draws: Draws | None


def ask(
    tokenizer: Any,
    rows: Sequence[tuple[Example, Pair | None]],
    settings: Generate,
    seed: int,
    instruction: str | None = None,
) -> GenerationInputs:
    """The prompts of `rows`.

    Args:
        tokenizer: the model's.
        rows: of `held_out`.
        settings: length and decoding.
        seed: of the sampling.
        instruction: stands before each context, for the replies and for the ranks.
    """
    from attune.generation.sampling import Draws
    from attune.models.chat_template import encode_prompt
    from attune.models.system_prompt import fit_instructed

    room = settings.max_length - settings.max_new_tokens
    contexts = [fit_instructed(tokenizer, one.context, instruction, room) for one, _ in rows]
    prompts = [encode_prompt(tokenizer, context, room) for context in contexts]
    seeds = [uniform(2**63, seed, one.id, "reply") for one, _ in rows]
    return GenerationInputs(
        contexts, prompts, Draws(settings.temperature, settings.top_p, seeds) if settings.do_sample else None
    )


def answer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[tuple[Example, Pair | None]],
    asked: GenerationInputs,
    settings: Generate,
    hardware: Hardware,
    replies: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Answer each context and rank its two replies.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        rows: of `held_out`.
        asked: of `ask`.
        settings: lengths.
        hardware: device, precision, and the tokens of a batch.
        replies: what another engine has answered; None: `model` answers.

    Returns:
        A record an example: id, label, context (without the instruction), reference, reply, rejected, and the mean
        log-probability per token (nats) of the reference and of the rejected reply; the last three are None where no
        reply could be drawn.

    Raises:
        ModelError: `generate.max_length` exceeds the model's positions.
    """
    from attune.generation.generate import generate_replies, mean_logps
    from attune.models.chat_template import encode_completion
    from attune.models.loading import require_positions

    require_positions(model, "generate.max_length", settings.max_length)
    if replies is None:
        replies = generate_replies(model, tokenizer, asked.prompts, settings.max_new_tokens, hardware, asked.draws)
    paired = [pair for _, pair in rows if pair]
    contexts = [context for context, (_, pair) in zip(asked.contexts, rows, strict=True) if pair]
    scores = {}
    for name, texts in (
        ("reference_logp", [p.chosen for p in paired]),
        ("rejected_logp", [p.rejected for p in paired]),
    ):
        completions = [encode_completion(tokenizer, c, text) for c, text in zip(contexts, texts, strict=True)]
        logps = mean_logps(model, tokenizer, completions, hardware, progress=name)
        scores[name] = dict(zip((p.id for p in paired), logps, strict=True))
    return [
        {
            "id": one.id,
            "label": one.label,
            "context": [asdict(turn) for turn in one.context],
            "reference": one.target,
            "reply": reply,
            "rejected": pair.rejected if pair else None,
            **{name: logps.get(one.id) for name, logps in scores.items()},
        }
        for (one, pair), reply in zip(rows, replies, strict=True)
    ]


def write_replies(records: Sequence[dict[str, Any]], path: Path, engine: str | None = None) -> None:
    """Parquet with the fields of `answer`; its metadata names the engine, where that is not the built-in one."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    fields = [("id", text), ("label", text), ("context", turn_list_type()), ("reference", text), ("reply", text)]
    fields += [("rejected", text), ("reference_logp", number), ("rejected_logp", number)]
    schema = pa.schema(fields, metadata={ENGINE: engine} if engine else None)
    write_table(path, pa.Table.from_pylist(list(records), schema=schema))
