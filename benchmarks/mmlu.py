"""Questions a second of stage `mmlu`'s model, which shares prefixes, against lm-evaluation-harness's own `HFLM`.

    python -m benchmarks.mmlu [folder of MMLU's csv files]

Five-shot prompts of the harness, random Llama models, the same rows, batch and precision on both sides, which
alternate; the ratio is taken round by round. `ratio` is for a model of 15 M parameters and a window of 2,048 tokens,
which holds most prompts whole; the case `tiny` is the tiny model of params.yaml, to whose window many are cut. Prompts
are built and tokenised before the clock starts. Without an argument the folder is mmlu in the environment's
CORPORA_DIR, else the embedded questions, whose prompts are shorter.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from attune.compute.process import set_up_process
from attune.config.params import load
from attune.config.schema import Params, Tiny
from attune.models.tiny import make_model, train_tokenizer
from attune.scoring.mmlu import harness
from attune.scoring.mmlu.shared_prefix import shared_prefix_lm
from benchmarks.measure import CORPORA, HEADLINE, SIZES, alternate, compared, parameters, write_result

SAMPLE = Path("data/sample/mmlu")
SUBJECTS = 4
QUESTIONS = 40
LARGER = {**SIZES[HEADLINE], "max_positions": 2048}


def main() -> None:
    """Measure, print and write the result."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    params = load()
    set_up_process(params.hardware)
    folder = rows_folder()
    everything = harness.read(folder, params.mmlu.shots, None)
    texts = [" ".join((q.question, *q.choices)) for one in everything.values() for q in one.dev + one.test]
    # Evenly spread over the alphabet of subjects, the first questions of each.
    names = list(everything)[:: max(1, len(everything) // SUBJECTS)][:SUBJECTS]
    subjects = {name: harness.Subject(everything[name].dev, everything[name].test[:QUESTIONS]) for name in names}
    # The letters often enough to be one token each, as in a real vocabulary.
    letters = ["Answer: A Answer: B Answer: C Answer: D"] * 50
    tokenizer = train_tokenizer([*texts, *letters], params.tiny.vocab_size, LARGER["max_positions"])
    sizes = {HEADLINE: replace(params.tiny, **LARGER), "tiny": params.tiny}
    cases = {name: compare(subjects, tokenizer, size, params) for name, size in sizes.items()}
    result = {
        **cases[HEADLINE],
        "peer": "lm-evaluation-harness, HFLM",
        "cases": cases,
        "data": f"{len(subjects)} subjects, {harness.questions(subjects)} questions, "
        f"sha256 {harness.digest(subjects)[:16]}",
        "shots": params.mmlu.shots,
        "batch_size": params.mmlu.batch_size,
        "dtype": params.hardware.dtype,
    }
    write_result("mmlu", result)


def rows_folder() -> Path:
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    local = CORPORA / "mmlu"
    return local if local.is_dir() else SAMPLE


def compare(subjects: dict[str, harness.Subject], tokenizer: Any, size: Tiny, params: Params) -> dict[str, Any]:
    """Both sides on one model."""
    from lm_eval.models.huggingface import HFLM

    model = make_model(tokenizer, size, params.seed).eval()
    ours = shared_prefix_lm(model, tokenizer, params.mmlu.batch_size, params.hardware)
    plain = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=params.mmlu.batch_size,
        softmax_dtype="float32",
        mixed_precision_dtype="bfloat16" if params.hardware.dtype == "bf16" else None,
    )
    requests = encoded(subjects, plain, params.mmlu.shots)
    asked = harness.questions(subjects)
    rounds = alternate(
        lambda: ours._loglikelihood_tokens(requests, disable_tqdm=True),
        lambda: plain._loglikelihood_tokens(requests, disable_tqdm=True),
    )
    return {
        **compared(rounds, asked, "questions"),
        "prompts_cut": sum(len(context) + len(choice) > size.max_positions + 1 for _, context, choice in requests) // 4,
        "mean_prompt_tokens": round(sum(len(context) for _, context, _ in requests) / len(requests)),
        "window": size.max_positions,
        "parameters": parameters(model),
    }


def encoded(subjects: dict[str, harness.Subject], lm: Any, shots: int) -> list[Any]:
    """The harness's requests as tokens."""
    requests = []
    for task in harness.tasks(subjects, shots)["tasks"].values():
        task.build_all_requests()
        for context, choice in (one.arguments for one in task.instances):
            requests.append(((context, choice), *lm._encode_pair(context, choice)))
    return requests


if __name__ == "__main__":
    main()
