"""Candidates and scores from an LLM (Son and So, section 2.2: ChatGPT, from the conversation and the stages)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attune.config.schema import Endpoint, Llm
from attune.data.dialogue import Example, Turn
from attune.data.keyed import uniform
from attune.pairs.endpoint import Request, ask
from attune.pairs.ranked import Candidates, Judge, Source
from attune.runtime.io import json_object, read_prompt


def llm_source(llm: Llm, endpoint: Endpoint, seed: int, epoch: int, cache: Path) -> Source:
    """`llm.n` replies that follow the stages and as many that do not, in one request an example."""
    template = read_prompt(Path(llm.prompt), {"conversation", "n"}, "llm.prompt")

    def candidates(examples: Sequence[Example]) -> Candidates:
        requests = [
            Request(
                template.substitute(conversation=conversation(example.context), n=llm.n),
                llm.temperature,
                uniform(2**31, seed, epoch, example.id, "llm"),
            )
            for example in examples
        ]
        parsed = [parse_replies(answer) for answer in ask(llm, endpoint, requests, cache)]
        return Candidates([replies or [] for replies in parsed], sum(replies is None for replies in parsed))

    return candidates


def llm_judge(llm: Llm, endpoint: Endpoint, cache: Path) -> Judge:
    """Scores by the endpoint at temperature 0: its answer, a number from 0 to 100, divided by 100."""
    template = read_prompt(Path(llm.judge_prompt), {"conversation", "reply"}, "llm.judge_prompt")

    def judge(contexts: Sequence[Sequence[Turn]], replies: Sequence[str]) -> list[float | None]:
        texts = (
            template.substitute(conversation=conversation(context), reply=reply)
            for context, reply in zip(contexts, replies, strict=True)
        )
        return [parse_score(answer) for answer in ask(llm, endpoint, [Request(text, 0.0, 0) for text in texts], cache)]

    return judge


def conversation(context: Sequence[Turn]) -> str:
    """A context as text for prompts, a line for each turn."""
    names = {"system": "Instruction", "user": "Seeker", "assistant": "Supporter"}
    return "\n".join(f"{names[turn.role]}: {turn.text}" for turn in context)


def parse_replies(answer: str | None) -> list[str] | None:
    """The texts under `follow` and `ignore` of the JSON object in `answer`; None if one of them has no text."""
    parsed = json_object(answer)
    groups = [parsed.get("follow"), parsed.get("ignore")]
    texts = [
        [text for text in group if isinstance(text, str) and text.strip()]
        for group in groups
        if isinstance(group, list)
    ]
    return [text for group in texts for text in group] if len(texts) == 2 and all(texts) else None


def parse_score(answer: str | None) -> float | None:
    """The `score` of the JSON object in `answer` over 100; None if it is not a number from 0 to 100."""
    score = json_object(answer).get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return score / 100 if 0 <= score <= 100 else None
