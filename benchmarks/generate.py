"""Replies a second of stage `generate` against transformers' `generate` called for one prompt after the other.

    python -m benchmarks.generate

Same random model (the tiny architecture), same prompts (test contexts of the embedded sample), same length, greedy,
same precision. Both sides are warmed up and alternate; the ratio is taken round by round.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from stages.corpora import empathetic_dialogues
from stages.dialogues import examples
from stages.files import write_json
from stages.machine import machine
from stages.modeling.chat import encode_prompt
from stages.modeling.generation import generate_replies
from stages.modeling.loading import autocast, set_up_process
from stages.modeling.tiny import make_model, train_tokenizer
from stages.params import load

RESULT = Path("benchmarks/results/generate.json")
PROMPTS = 64
ROUNDS = 3


def main() -> None:
    """Measure, print and write the result."""
    params = load()
    set_up_process(params.hardware)
    dialogues, _ = empathetic_dialogues.read(Path("data/sample/empatheticdialogues"))
    texts = (turn.text for d in dialogues if d.split == "train" for turn in d.turns)
    tokenizer = train_tokenizer(texts, params.tiny.vocab_size, params.tiny.max_positions)
    model = make_model(tokenizer, params.tiny, params.seed).eval()
    test = [one for d in dialogues if d.split == "test" for one in examples(d, "last", None)]
    contexts = [one.context for one in test[:PROMPTS]]
    prompts = [encode_prompt(tokenizer, context, params.generate.max_length) for context in contexts]

    def ours() -> None:
        generate_replies(model, tokenizer, prompts, params.generate, params.hardware, params.seed)

    def one_by_one() -> None:
        peer(model, prompts, params.generate.max_new_tokens, tokenizer.pad_token_id, params.hardware)

    rounds = alternate(ours, one_by_one)
    ratios = sorted(theirs / mine for mine, theirs in rounds)
    result = {
        "ratio": round(median(ratios), 2),
        "low": round(ratios[0], 2),
        "high": round(ratios[-1], 2),
        "peer": "transformers generate, one prompt at a time",
        "unit": "replies/s over replies/s",
        "ours_per_second": round(PROMPTS / median(mine for mine, _ in rounds), 2),
        "peer_per_second": round(PROMPTS / median(theirs for _, theirs in rounds), 2),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "prompts": PROMPTS,
        "max_new_tokens": params.generate.max_new_tokens,
        "dtype": params.hardware.dtype,
        "machine": machine(),
    }
    write_json(RESULT, result)
    print(f"{result['ratio']} ({result['low']} to {result['high']}) times {result['peer']}", file=sys.stderr)


def alternate(ours: Callable[[], None], peer: Callable[[], None]) -> list[tuple[float, float]]:
    """Seconds of both sides in `ROUNDS` rounds, after one round that does not count."""
    rounds = [(seconds(ours), seconds(peer)) for _ in range(ROUNDS + 1)]
    return rounds[1:]


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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
    main()
