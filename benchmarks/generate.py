"""Replies a second of stage `generate` against transformers' `generate` called for one prompt after the other.

    python -m benchmarks.generate

Random Llama models, contexts of EmpatheticDialogues' test split (the embedded sample where there is none), the
same prompts, length and precision on both sides, greedy. Both sides are warmed up and alternate; the ratio is taken
round by round. The headline is the model of 15 M parameters; `tiny` is the one of params.yaml.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from attune.compute.process import autocast, set_up_process
from attune.config.params import load
from attune.config.schema import Params
from attune.data.examples import examples
from attune.generation.generate import generate_replies
from attune.models.chat_template import encode_prompt
from attune.models.tiny import make_model
from benchmarks import measure

PROMPTS = 64
SIDES = ("ours", "peer")


def main(memory: str | None) -> None:
    """Measure, print and write the result; or answer on one side, for its peak of memory."""
    params = load()
    set_up_process(params.hardware)
    found, data = measure.dialogues()
    tokenizer = measure.tokenizer_of(found, params.tiny)
    settings = params.generate
    test = examples([dialogue for dialogue in found if dialogue.split == "test"], "last", None)
    contexts = [one.context for one in test[:PROMPTS]]
    prompts = [encode_prompt(tokenizer, one, settings.max_length - settings.max_new_tokens) for one in contexts]
    sizes = {
        measure.HEADLINE: replace(params.tiny, **measure.SIZES[measure.HEADLINE]),
        "tiny": params.tiny,
    }
    if memory:
        model = make_model(tokenizer, sizes[measure.HEADLINE], params.seed).eval()
        sides(model, tokenizer, prompts, params)[SIDES.index(memory)]()
        measure.print_peak()
        return
    cases = {
        name: compare(make_model(tokenizer, size, params.seed).eval(), tokenizer, prompts, params)
        for name, size in sizes.items()
    }
    result = {
        **cases[measure.HEADLINE],
        "peer": "transformers generate, one prompt at a time",
        "peak_memory_mib": {side: measure.peak_memory("benchmarks.generate", "--memory", side) for side in SIDES},
        "cases": cases,
        "data": data,
        "prompts": PROMPTS,
        "mean_prompt_tokens": round(sum(map(len, prompts)) / PROMPTS),
        "max_new_tokens": settings.max_new_tokens,
        "dtype": params.hardware.dtype,
    }
    measure.write_result("generate", result)


def compare(model: Any, tokenizer: Any, prompts: list[list[int]], params: Params) -> dict[str, Any]:
    """Both sides on one model."""
    rounds = measure.alternate(*sides(model, tokenizer, prompts, params))
    found = measure.compared(rounds, len(prompts), "replies")
    # A random model ends no reply: each has all of its tokens.
    longest = params.generate.max_new_tokens
    tokens = {f"{side}_tokens_per_second": round(found[f"{side}_per_second"] * longest) for side in SIDES}
    return {**found, **tokens, "parameters": measure.parameters(model)}


def sides(model: Any, tokenizer: Any, prompts: list[list[int]], params: Params) -> tuple[Callable[[], object], ...]:
    """What answers all prompts, ours first."""
    longest, hardware = params.generate.max_new_tokens, params.hardware
    return (
        lambda: generate_replies(model, tokenizer, prompts, longest, hardware),
        lambda: peer(model, prompts, longest, tokenizer.pad_token_id, hardware),
    )


def peer(model: Any, prompts: list[list[int]], max_new_tokens: int, pad_id: int, hardware: Any) -> None:
    """What a plain loop over the prompts does."""
    import torch

    with torch.inference_mode(), autocast(hardware):
        for prompt in prompts:
            ids = torch.tensor([prompt], device=hardware.device)
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=pad_id,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)
    main(parser.parse_args().memory)
