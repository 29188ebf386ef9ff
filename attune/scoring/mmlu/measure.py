"""Five-shot MMLU of a model: the metrics, and the signature that explains them."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from attune.scoring.mmlu import harness

if TYPE_CHECKING:
    from attune.config.schema import Hardware, Mmlu


def measure(
    model: Any, tokenizer: Any, subjects: dict[str, harness.Subject], settings: Mmlu, hardware: Hardware
) -> tuple[dict[str, float], dict[str, str]]:
    """Run MMLU.

    Args:
        model: in eval mode, on `compute.device`.
        tokenizer: the model's.
        subjects: of `harness.read`.
        settings: shots and batch size.
        hardware: device and precision.

    Returns:
        The metrics (times 100, not rounded) and their signature, without the part that names the model.
    """
    from attune.scoring.mmlu.shared_prefix import shared_prefix_lm

    # lm_eval warns about each custom source of rows and each truncated prompt; the signature counts the latter.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = shared_prefix_lm(model, tokenizer, settings.batch_size, hardware)
    results = harness.evaluate(lm, subjects, settings.shots)
    questions = harness.questions(subjects)
    return harness.metrics(results), {
        "lm_eval": version("lm_eval"),
        "mmlu": harness.versions(results),
        "shots": str(settings.shots),
        "batch_size": str(settings.batch_size),
        "dtype": hardware.dtype,
        "subjects": str(len(subjects)),
        "questions": str(questions),
        # Every question gives one request for each of its choices.
        "prompts_cut": f"{lm.cut // len(harness.LETTERS)} of {questions}, from the left to {lm.max_length} tokens",
        "rows": f"{settings.corpus}, sha256 {harness.digest(subjects)}",
    }
