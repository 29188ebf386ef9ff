"""Replies a second of stage `generate` against transformers' `generate` in batches of prompts of similar length.

    python -m benchmarks.generate                    # the headline, about 14 minutes on two cores
    python -m benchmarks.generate one-at-a-time      # about 5 minutes
    python -m benchmarks.generate thousand           # about an hour
    LLAMA_SERVER=build/bin/llama-server python -m benchmarks.generate llama-server    # about 8 minutes

SmolLM2-135M-Instruct, prompts of EmpatheticDialogues' test split (below CORPORA_DIR, else of the embedded sample),
greedy, to the end of the reply or 48 tokens. A thousand random prompts, sorted by length, make batches of 32; a round
of the headline has a batch of long prompts and a batch of short ones, and `thousand` has all batches in one round. The
peers are `generate` with its dynamic and with its static cache, on weights in the precision that both sides compute in,
as users of transformers load them. Our side is what the stage does: weights in fp32, autocast, and the same prompts in
batches of similar length. `one-at-a-time` calls `generate` once for each prompt, as the examples of transformers do. No
two rounds share a prompt. The peer of `llama-server` is llama.cpp's server on the GGUF file itself, whose 4-bit weights
it multiplies as they are (`benchmarks/llama_server.py`); it answers four prompts at a time.

The peaks of memory are those of processes that answer the longest prompts, ours with the log-probabilities of the human
replies, which the stage computes as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from statistics import fmean
from typing import Any

from attune.data.dialogue import Example
from attune.data.examples import examples
from attune.data.keyed import random_subset
from attune.generation.generate import generate_replies, replies_and_logps
from attune.models.chat_template import encode_completion, encode_prompt
from attune.models.weights import checked_gguf
from benchmarks import measure
from benchmarks.llama_server import LlamaServer

PROMPTS = 1000
# Prompts that llama.cpp's server answers at a time, its default: 1.08 replies/s; with 32 it was 0.88.
SLOTS = 4
Batch = list[list[int]]


@dataclass(frozen=True)
class Case:
    """`batches` batches of `size` prompts a round."""

    batches: int
    size: int = 32
    peers: tuple[str, ...] = ("dynamic", "static")
    rounds: int = measure.ROUNDS
    model: str = measure.SMOLLM2

    @property
    def sides(self) -> tuple[str, ...]:
        return ("ours", *self.peers)

    def tiny(self) -> Case:
        return replace(self, model="tiny", batches=1, size=min(self.size, 2))


CASES = {
    "headline": Case(2),
    "one-at-a-time": Case(16, 1, ("dynamic",)),
    "thousand": Case(PROMPTS // 32, rounds=1),
    "llama-server": Case(2, peers=("llama_server",)),
}


class Sides:
    """Each side answers batches of prompts, and keeps the replies of all rounds."""

    def __init__(self, setting: measure.Setting, case: Case) -> None:
        self.setting, self.case, self.longest = setting, case, setting.params.generate.max_new_tokens
        self.replies: dict[str, list[str]] = {side: [] for side in case.sides}

    @cached_property
    def model(self) -> Any:
        return self.setting.model(self.case.model).eval()

    @cached_property
    def theirs(self) -> Any:
        """The model as the peer's users load it: weights in the precision that both sides compute in."""
        model = self.setting.model(self.case.model).eval()
        return model.bfloat16() if self.setting.params.hardware.precision == "bf16" else model

    def ours(self, batches: Sequence[Batch]) -> None:
        settings = (self.longest, self.setting.params.hardware)
        self.replies["ours"] += generate_replies(self.model, self.setting.tokenizer, list(chain(*batches)), *settings)

    def dynamic(self, batches: Sequence[Batch]) -> None:
        self.peer("dynamic", batches)

    def static(self, batches: Sequence[Batch]) -> None:
        self.peer("static", batches)

    @cached_property
    def server(self) -> LlamaServer:
        params = self.setting.params
        gguf, room = checked_gguf(params.model), params.generate.max_length
        return LlamaServer(gguf, SLOTS, room, params.hardware.threads)

    def llama_server(self, batches: Sequence[Batch]) -> None:
        self.replies["llama_server"] += self.server.answers(list(chain(*batches)), self.longest)

    def peer(self, side: str, batches: Sequence[Batch]) -> None:
        """transformers' `generate`, a batch a call, with the cache `side`, of the batch's size."""
        from transformers import DynamicCache, StaticCache

        tokenizer, config = self.setting.tokenizer, self.theirs.config
        for batch in batches:
            prompts = tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt")
            width = prompts["input_ids"].shape[1]
            # One that `generate` makes itself is never shorter than that of the call before.
            cache = DynamicCache(config=config) if side == "dynamic" else StaticCache(config, width + self.longest)
            ids = self.theirs.generate(
                **prompts,
                max_new_tokens=self.longest,
                do_sample=False,
                past_key_values=cache,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
            self.replies[side] += map(str.strip, texts)


def contexts_of(setting: measure.Setting) -> tuple[list[tuple[list[int], Example]], str]:
    """Random prompts of the test split, the longest first, with their examples; and where they are from."""
    params, (found, source) = setting.params, measure.dialogues()
    test = examples([dialogue for dialogue in found if dialogue.split == "test"], "last", None)
    room = params.generate.max_length - params.generate.max_new_tokens
    some = random_subset(test, PROMPTS, params.seed)
    prompts = [(encode_prompt(setting.tokenizer, one.context, room), one) for one in some]
    return sorted(prompts, key=lambda prompt: -len(prompt[0])), source


def parts_of(prompts: Batch, case: Case) -> list[list[Batch]]:
    """The batches of each round, of lengths from all over the prompts; first a batch that warms up."""
    batches = [prompts[start : start + case.size] for start in range(0, len(prompts), case.size)]
    needed = min(1 + case.rounds * case.batches, len(batches))
    warm, *rest = batches[:: len(batches) // needed][:needed]
    return [[warm], *([*rest, *([warm] if case.rounds == 1 else [])][i :: case.rounds] for i in range(case.rounds))]


def measured(setting: measure.Setting, case: Case) -> dict[str, Any]:
    """The figures of a case; its peers by their speed."""
    sides, (prompts, source) = Sides(setting, case), contexts_of(setting)
    parts = parts_of([prompt for prompt, _ in prompts], case)
    works = (measure.on_parts(getattr(sides, side), parts) for side in case.sides)
    rounds, amount = measure.turns(*works, rounds=len(parts) - 1), sum(map(len, parts[1]))
    over = {side: measure.compared(rounds, amount, place) for place, side in enumerate(case.peers, 1)}
    words = {side: [len(text.split()) for text in said] for side, said in sides.replies.items()}
    return {
        "unit": "replies",
        "over": dict(sorted(over.items(), key=lambda item: item[1]["ratio"])),
        "words_each": {side: round(fmean(counts), 1) for side, counts in words.items()},
        "mean_prompt_tokens": round(fmean(len(prompt) for part in parts[1:] for prompt in chain(*part))),
        "amount": amount,
        "batch": case.size,
        "model": case.model,
        "data": source,
        "dtype": setting.params.hardware.precision,
    }


def alone(setting: measure.Setting, case: Case, side: str) -> int | None:
    """Answer the longest prompts: ours as many as two of its batches hold, a peer a batch. Gives a server's peak."""
    prompts, _ = contexts_of(setting)
    hardware, longest = setting.params.hardware, setting.params.generate.max_new_tokens
    sides = Sides(setting, case)
    if side != "ours":
        getattr(sides, side)([[prompt for prompt, _ in prompts[: case.size]]])
        return sides.server.peak() if side == "llama_server" else None
    some = prompts[: 2 * hardware.batch_tokens // (len(prompts[0][0]) + longest)]
    given = [[encode_completion(setting.tokenizer, one.context, one.target).reply] for _, one in some]
    texts = [prompt for prompt, _ in some]
    replies_and_logps(sides.model, setting.tokenizer, texts, given, longest, hardware)
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    measure.run("generate", __doc__, CASES, measured, alone, argv)


if __name__ == "__main__":
    main()
