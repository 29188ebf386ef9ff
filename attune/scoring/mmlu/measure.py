"""MMLU of a model: the metrics, the scores of each question, and the signature that explains them."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from attune.scoring.mmlu import harness

if TYPE_CHECKING:
    import pandas as pd

    from attune.config.schema import Hardware, Mmlu


def measure(
    model: Any, tokenizer: Any, subjects: dict[str, harness.Subject], settings: Mmlu, hardware: Hardware
) -> tuple[dict[str, float], pd.DataFrame, dict[str, str]]:
    """Run MMLU.

    Args:
        model: in eval mode, on `compute.device`.
        tokenizer: the model's.
        subjects: of `harness.read`.
        settings: form, shots and batch size.
        hardware: device and precision.

    Returns:
        The metrics (shares times 100, not rounded), the scores of each question (of `harness.answers`), and the
        signature, without the part that names the model.
    """
    from attune.scoring.mmlu.shared_prefix import shared_prefix_lm

    # lm_eval warns about each custom source of rows and each truncated prompt; the signature counts the latter.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = shared_prefix_lm(model, tokenizer, settings.batch_size, hardware)
    results = harness.evaluate(lm, subjects, settings.shots, settings.form)
    answers = harness.answers(results, subjects, settings.form)
    questions = harness.questions(subjects)
    # The letters of a question share a prompt; the text of each choice is the end of one of its own.
    shared = len(harness.LETTERS) if settings.form == "letters" else 1
    prompts = len(harness.LETTERS) * questions // shared
    means = {name: float(answers[name].mean()) for name in harness.ANSWER_COLUMNS if name != "acc"}
    return (
        harness.metrics(results) | means,
        answers,
        {
            "lm_eval": version("lm_eval"),
            "mmlu": harness.versions(results),
            "form": settings.form,
            "shots": str(settings.shots),
            "batch_size": str(settings.batch_size),
            "dtype": hardware.precision,
            "subjects": str(len(subjects)),
            "questions": str(questions),
            "prompts_cut": f"{lm.cut // shared} of {prompts}, from the left to {lm.max_length} tokens",
            "rows": f"{settings.corpus}, sha256 {harness.digest(subjects)}",
        },
    )
