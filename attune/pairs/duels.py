"""Have the language model of section `judge` compare pairs of replies, as stages `judge` and `judge_safety` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.pairs.endpoint import Request, answers_file, ask, reached_by
from attune.runtime.io import read_prompt, sha256_of
from attune.scoring.judge.verdicts import PLACES, Duel, Verdict, prompts, verdicts

if TYPE_CHECKING:
    from attune.config.schema import Params


def judged(duels: Sequence[Duel], prompt: str, key: str, params: Params, answers: Path | None = None) -> list[Verdict]:
    """The judge's verdicts on the duels, each in both orders.

    Args:
        duels: N pairs of replies.
        prompt: file with the prompt.
        key: of the params that names this file, for errors.
        params: of the run.
        answers: the cache of answers; None: that of the project.

    Raises:
        UserError: as `ask`, and as `read_prompt`.
    """
    texts = prompts(read_prompt(Path(prompt), PLACES, key), duels)
    requests = [Request(text, 0.0, params.seed) for text in texts]
    llm = reached_by(params.llm, params.judge)
    return verdicts(ask(llm, params.endpoint, requests, answers or answers_file()))


def judge_signature(name: str, prompt: str, params: Params) -> dict[str, str]:
    """What explains the verdicts, with keys that begin with `name`: the model, its endpoint, and the prompt's hash."""
    return {
        name: f"{params.judge.model} at {params.judge.base_url}, temperature 0, both orders",
        f"{name}_prompt": f"{prompt}, sha256 {sha256_of(Path(prompt))}",
    }
