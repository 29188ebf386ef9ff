"""Stage `generate@<variant>`: the variant's replies to the test contexts, and how it ranks replies of people.

    python -m stages.generate sft-dpo

writes `data/replies/sft-dpo.parquet`. It is the only stage of evaluation that loads the model: everything that later
scores need from it is in the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.dialogues import Example, Turn, read_examples, turn_list_type
from stages.errors import reported
from stages.files import write_table
from stages.launch import run as in_ranks
from stages.params import load
from stages.preferences.counselling import counselling_pairs, group_by_match, sides
from stages.preferences.dbt_candidates import other_act_pairs
from stages.preferences.opposite_emotion import Pair, build_pairs, group_by_label, random_part, read_opposites, uniform
from stages.preferences.rules import rule_of
from stages.ranks import by_first
from stages.scoring.miti import read_adherence
from stages.sections import Generate, Hardware, Params

if TYPE_CHECKING:
    from stages.modeling.sampling import Draws

BASE = Path("models/base")
TEST = Path("data/dialogues/test.parquet")
REPLIES = Path("data/replies")
HELD_OUT_EPOCH = 0
# In the metadata of a file of replies: name and version of the engine that wrote them.
ENGINE = "engine"


def held_out(
    examples: Sequence[Example], pairs: Callable[[Sequence[Example]], Sequence[Pair]], limit: int | None, seed: int
) -> list[tuple[Example, Pair | None]]:
    """The examples to answer, each with the reply of the test split that `pairs` has its target ranked against."""
    part = sorted(random_part(examples, limit, seed), key=lambda e: e.id)
    by_id = {pair.id: pair for pair in pairs(part)}
    return [(one, by_id.get(one.id)) for one in part]


def held_out_pairs(part: Sequence[Example], examples: Sequence[Example], params: Params) -> Sequence[Pair]:
    """Pairs of `part` whose rejected reply is a fresh one of the test split, by the rule of the pairs.

    It is a reply to the opposite emotion, or one of poor counselling; for rule dbt, which ranks by a classifier, one to
    the same label that is another act; a rule of one's own makes them itself.
    """
    key = {"seed": params.seed, "epoch": HELD_OUT_EPOCH}
    match params.pairs.rule:
        case "opposite_emotion":
            return build_pairs(part, group_by_label(examples), read_opposites(Path(params.pairs.opposites)), **key)
        case "counselling":
            adherence = read_adherence(Path(params.miti.adherence))
            pool = group_by_match(sides(examples, adherence)[1])
            return counselling_pairs(sides(part, adherence)[0], pool, **key)
        case "dbt":
            return other_act_pairs(part, examples, **key)
        case _:
            return rule_of(params.pairs.rule)(part, examples, params, HELD_OUT_EPOCH)


@dataclass(frozen=True)
class Asked:
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
) -> Asked:
    """The prompts of `rows`.

    Args:
        tokenizer: the model's.
        rows: of `held_out`.
        settings: length and decoding.
        seed: of the sampling.
        instruction: stands before each context, for the replies and for the ranks.
    """
    from stages.modeling.chat import encode_prompt
    from stages.modeling.instruction import fit_instructed
    from stages.modeling.sampling import Draws

    room = settings.max_length - settings.max_new_tokens
    contexts = [fit_instructed(tokenizer, one.context, instruction, room) for one, _ in rows]
    prompts = [encode_prompt(tokenizer, context, room) for context in contexts]
    seeds = [uniform(2**63, seed, one.id, "reply") for one, _ in rows]
    return Asked(contexts, prompts, Draws(settings.temperature, settings.top_p, seeds) if settings.do_sample else None)


def answer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[tuple[Example, Pair | None]],
    asked: Asked,
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
    from stages.modeling.chat import encode_completion
    from stages.modeling.generation import generate_replies, mean_logps
    from stages.modeling.loading import require_positions

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


def main(variant: str, params: Params) -> None:
    """Write `data/replies/<variant>.parquet`."""
    from stages.modeling.instruction import read_instruction
    from stages.modeling.loading import load_tokenizer, load_variant

    one = params.variants[variant]
    instruction = read_instruction(one.instruction_file) if one.instruction_file else None
    examples = read_examples(TEST, params.corpus)
    pairs = partial(held_out_pairs, examples=examples, params=params)
    rows = held_out(examples, pairs, params.generate.limit, params.seed)
    tokenizer, settings = load_tokenizer(BASE), (params.generate, params.hardware)
    asked = ask(tokenizer, rows, params.generate, params.seed, instruction)
    replies, engine = None, None
    if params.generate.engine == "vllm":
        from stages.modeling.vllm_engine import vllm_replies, vllm_signature

        # Before the model that ranks is loaded: vLLM takes the GPU to itself.
        replies = vllm_replies(BASE, Path(one.model), tokenizer, asked.prompts, *settings, asked.draws)
        engine = vllm_signature()
    model = load_variant(BASE, Path(one.model), params.hardware)
    records = answer(model, tokenizer, rows, asked, *settings, replies)
    by_first(lambda: write_replies(records, REPLIES / f"{variant}.parquet", engine))


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
