"""Stage `mmlu@<variant>`: what alignment leaves of the model's general knowledge, by five-shot MMLU.

    python -m stages.mmlu <variant>

writes `metrics/mmlu/<variant>.json` (times 100, 4 digits) and `metrics/mmlu/<variant>.signature.json`. Prompts,
versions and groups are those of lm-evaluation-harness; the rows are local files.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params
from attune.runtime.cli import stage_arguments
from attune.runtime.distributed import on_main_process
from attune.runtime.errors import reported
from attune.runtime.io import write_json
from attune.runtime.launch import run as in_ranks
from attune.scoring.mmlu import harness

BASE = Path("models/base")
RAW = Path("data/raw")
SAMPLE = Path("data/sample/mmlu")
METRICS = Path("metrics/mmlu")
DIGITS = 4


def load_model(folder: Path, params: Params) -> Any:
    """The base model, or a PeftModel with the adapter of `folder` on it, which is left unmerged."""
    from attune.models.loading import is_adapter, load_adapter, load_base

    model = load_base(BASE, params.hardware)
    return (load_adapter(model, folder, trainable=False) if is_adapter(folder) else model).eval()


def measure(
    model: Any, tokenizer: Any, subjects: dict[str, harness.Subject], params: Params
) -> tuple[dict[str, float], dict[str, str]]:
    """Run MMLU.

    Args:
        model: in eval mode, on `compute.device`.
        tokenizer: the model's.
        subjects: of `harness.read`.
        params: the sections mmlu and hardware are read.

    Returns:
        The metrics (times 100, unrounded) and what explains them, without the model.
    """
    from attune.scoring.mmlu.shared_prefix import shared_prefix_lm

    # It warns of each source of rows and of each prompt that is cut; the signature counts the latter.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    settings = params.mmlu
    lm = shared_prefix_lm(model, tokenizer, settings.batch_size, params.hardware)
    results = harness.evaluate(lm, subjects, settings.shots)
    asked = harness.questions(subjects)
    return harness.metrics(results), {
        "lm_eval": version("lm_eval"),
        "mmlu": harness.versions(results),
        "shots": str(settings.shots),
        "batch_size": str(settings.batch_size),
        "dtype": params.hardware.dtype,
        "subjects": str(len(subjects)),
        "questions": str(asked),
        # Every question is asked with each of its choices.
        "prompts_cut": f"{lm.cut // len(harness.LETTERS)} of {asked}, from the left to {lm.max_length} tokens",
        "rows": f"{settings.corpus}, sha256 {harness.digest(subjects)}",
    }


def describe(folder: Path) -> dict[str, str]:
    """The base model and its commit on the hub, and the adapter on it."""
    from attune.models.loading import is_adapter, origin, quantization

    source, commit = origin(BASE)
    adapter = f"{folder}, not merged" if is_adapter(folder) else "none"
    held = {"quantization": short} if (short := quantization(BASE)) else {}
    return {"model": source, "commit": commit or "none: made by stage base", "adapter": adapter} | held


def main(variant: str, params: Params) -> None:
    """Write the metrics and the signature of a variant.

    Raises:
        UserError: there is no such variant, or the rows are not what the task needs.
    """
    from attune.models.loading import load_tokenizer

    corpus, folder = params.mmlu.corpus, Path(named(params.variants, variant, "variants").model)
    rows = harness.read(SAMPLE if corpus == "sample" else RAW / corpus, params.mmlu.shots, params.mmlu.limit)
    metrics, signature = measure(load_model(folder, params), load_tokenizer(BASE), rows, params)

    def write() -> None:
        write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in metrics.items()})
        write_json(METRICS / f"{variant}.signature.json", describe(folder) | signature)

    on_main_process(write)


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of variants")
        params = load()
        in_ranks(lambda: main(arguments.variant, params), params.hardware)
