"""Questions a second of stage `mmlu`'s model, which shares prefixes, against lm-evaluation-harness's own `HFLM`.

    python -m benchmarks.mmlu    # about 12 minutes on two cores

SmolLM2-135M-Instruct, five-shot prompts of the harness, 16 questions a batch, the same autocast on both sides.
Questions of four subjects, evenly spread over the alphabet, of MMLU below CORPORA_DIR, else of the embedded sample;
no two rounds share a question. Prompts are built and tokenised before the time is taken. `choices_that_differ`
counts the questions of all rounds for which the two sides give another choice the highest log-likelihood.

The peaks of memory are those of processes that answer a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from statistics import fmean
from typing import Any

from attune.scoring.mmlu import harness
from attune.scoring.mmlu.shared_prefix import shared_prefix_lm
from benchmarks import measure
from stages.mmlu import SAMPLE

SUBJECTS = 4
Requests = list[Any]


@dataclass(frozen=True)
class Case:
    """`questions` questions of each subject a round, after a round of four of each."""

    questions: int = 30
    warm: int = 4
    model: str = measure.SMOLLM2
    sides: tuple[str, ...] = ("ours", "hflm")

    def tiny(self) -> Case:
        return replace(self, model="tiny", questions=1, warm=1)


CASES = {"headline": Case()}


def models(setting: measure.Setting, case: Case) -> dict[str, Any]:
    """The harness's model of each side."""
    from lm_eval.models.huggingface import HFLM

    params, model = setting.params, setting.model(case.model).eval()
    mixed = "bfloat16" if params.hardware.precision == "bf16" else None
    batch = params.mmlu.batch_size
    given: dict[str, Any] = {"pretrained": model, "tokenizer": setting.tokenizer, "batch_size": batch}
    return {
        "ours": shared_prefix_lm(model, setting.tokenizer, batch, params.hardware),
        "hflm": HFLM(**given, softmax_dtype="float32", mixed_precision_dtype=mixed),
    }


def parts_of(setting: measure.Setting, case: Case, lm: Any) -> tuple[list[Requests], str]:
    """The harness's requests of each round as tokens, and where the questions are from."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    real, shots = measure.CORPORA / "mmlu", setting.params.mmlu.shots
    rows = harness.read(real if real.is_dir() else SAMPLE, shots, None)
    names = list(rows)[:: max(1, len(rows) // SUBJECTS)][:SUBJECTS]
    tests = [rows[name].test for name in names]
    # The embedded sample has fewer.
    fewest = min(case.questions, *((len(test) - case.warm) // measure.ROUNDS for test in tests))
    tests = [measure.in_rounds(test, case.warm, fewest) for test in tests]
    rounds = [
        {name: harness.Subject(rows[name].dev, tuple(test)) for name, test in zip(names, part, strict=True)}
        for part in zip(*tests, strict=True)
    ]
    digest = harness.digest({name: rows[name] for name in names})[:16]
    return [encoded(one, lm, shots) for one in rounds], f"MMLU, {', '.join(names)}, sha256 {digest}"


def encoded(subjects: dict[str, harness.Subject], lm: Any, shots: int) -> Requests:
    """The harness's requests as tokens, four a question."""
    requests = []
    for task in harness.tasks(subjects, shots)["tasks"].values():
        task.build_all_requests()
        for context, choice in (one.arguments for one in task.instances):
            requests.append(((context, choice), *lm._encode_pair(context, choice)))
    return requests


def measured(setting: measure.Setting, case: Case) -> dict[str, Any]:
    """The figures of a case."""
    lms = models(setting, case)
    parts, source = parts_of(setting, case, lms["ours"])
    choices: dict[str, list[int]] = {side: [] for side in case.sides}

    def answer(side: str, requests: Requests) -> None:
        logps = [logp for logp, _ in lms[side]._loglikelihood_tokens(requests, disable_tqdm=True)]
        choices[side] += [max(range(4), key=lambda i: logps[start + i]) for start in range(0, len(logps), 4)]

    works = (measure.on_parts(partial(answer, side), parts) for side in case.sides)
    rounds, amount = measure.turns(*works, rounds=len(parts) - 1), len(parts[1]) // 4
    prompts = [len(context) for _, context, _ in chain(*parts)]
    return {
        "unit": "questions",
        "over": {"hflm": measure.compared(rounds, amount)},
        "choices_that_differ": sum(one != other for one, other in zip(*choices.values(), strict=True)),
        "questions_compared": len(choices["ours"]),
        "mean_prompt_tokens": round(fmean(prompts)),
        "amount": amount,
        "batch": setting.params.mmlu.batch_size,
        "shots": setting.params.mmlu.shots,
        "model": case.model,
        "data": source,
        "dtype": setting.params.hardware.precision,
    }


def alone(setting: measure.Setting, case: Case, side: str) -> None:
    """Answer the questions of the round that warms up, a batch."""
    lm = models(setting, case)[side]
    lm._loglikelihood_tokens(parts_of(setting, case, lm)[0][0], disable_tqdm=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    measure.run("mmlu", __doc__, CASES, measured, alone, argv)


if __name__ == "__main__":
    main()
