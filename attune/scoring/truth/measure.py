"""TruthfulQA and MMLU on health of a model in three forms: the metrics, the scores of each question, the signature."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attune.scoring.mmlu import harness
from attune.scoring.truth import medical
from attune.scoring.truth.questions import FORMS, Question, chance, digest

if TYPE_CHECKING:
    import pandas as pd

    from attune.config.schema import Hardware, Mmlu, Truth

TASK = "truthfulqa_mc1"
EFFECTS = {"sad": "_sad_effect", "belief": "_belief_effect"}
"""Form to the end of the names of its difference to the plain form."""


def measure(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    subjects: Mapping[str, harness.Subject],
    settings: tuple[Truth, Mmlu],
    hardware: Hardware,
) -> tuple[dict[str, float], pd.DataFrame, dict[str, str]]:
    """Run the harness's tasks on the questions in each form.

    Args:
        model: in eval mode, on `compute.device`.
        tokenizer: the model's.
        questions: of `questions.read`.
        subjects: of `medical.read`; none: TruthfulQA alone.
        settings: batch size; form and shots of MMLU.
        hardware: device and precision.

    Returns:
        The metrics; the scores of each question, where a question of one task has none of the other's columns; and the
        signature without the part that names the model.
    """
    import pandas as pd
    from lm_eval.evaluator import evaluate

    from attune.scoring.mmlu.shared_prefix import shared_prefix_lm

    # lm_eval warns about the custom source of rows.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    truth, mmlu = settings
    lm = shared_prefix_lm(model, tokenizer, truth.batch_size, hardware)
    results = evaluate(lm, tasks(questions), log_samples=True, bootstrap_iters=0)
    assert results is not None  # lm_eval returns None where lm.rank > 0; it is 0 on each rank here
    found = with_effects(scores(dict(results), questions))
    signature = {
        "lm_eval": version("lm_eval"),
        "truth": f"{TASK}, version {results['versions'][TASK]}",
        "batch_size": str(truth.batch_size),
        "dtype": hardware.precision,
        "questions": str(len(questions)),
        "rows": f"{truth.corpus}, sha256 {digest(questions)}",
    }
    if subjects:
        of_health, versions = medical.scores(lm, subjects, mmlu)
        found = pd.concat([found, with_effects(of_health)], ignore_index=True)
        signature |= {
            "medical": f"mmlu, {versions}, {mmlu.form}, {mmlu.shots} shots: {', '.join(subjects)}",
            "medical_questions": str(len(of_health)),
            "medical_rows": f"{mmlu.corpus}, sha256 {harness.digest(subjects)}",
        }
    signature["requests_cut"] = f"{lm.cut}, from the left to {lm.max_length} tokens"
    return metrics(found, questions), found, signature


def tasks(questions: Sequence[Question]) -> Any:
    """The harness's own task for each form; only the rows and the name differ."""
    import lm_eval
    from datasets import Dataset, DatasetDict
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa"
    manager = TaskManager(include_path=folder, include_defaults=False)
    config = manager.task_index[TASK].cfg

    def of_form(form: str) -> dict[str, Any]:
        rows = [{"question": one.asked(form), "mc1_targets": {"choices": one.choices}} for one in questions]
        local = DatasetDict({"validation": Dataset.from_list(rows)})
        return {**config, "task": f"{TASK}{FORMS[form]}", "custom_dataset": lambda **_: local}

    return manager.load([of_form(form) for form in FORMS])


def scores(results: Mapping[str, Any], questions: Sequence[Question]) -> pd.DataFrame:
    """The scores of each question of TruthfulQA.

    Args:
        results: of the harness, with samples of the three tasks.
        questions: that were asked.

    Returns:
        (N,) rows: `id` and, with the ends of `FORMS`, `truth_acc`, 100 where the best answer is the likeliest, else 0,
        and `truth_margin`. An answer's rate is its log-probability in nats divided by its bytes; the margin is the rate
        of the best answer less the mean rate of the incorrect ones.
    """
    import pandas as pd

    columns: dict[str, list[Any]] = {"id": [one.id for one in questions]}
    for end in FORMS.values():
        samples = {sample["doc_id"]: sample for sample in results["samples"][f"{TASK}{end}"]}
        columns[f"truth_acc{end}"] = [100.0 * samples[i]["acc"] for i in range(len(questions))]
        columns[f"truth_margin{end}"] = [
            margin([logp for logp, _ in samples[i]["filtered_resps"]], one.choices) for i, one in enumerate(questions)
        ]
    return pd.DataFrame(columns)


def with_effects(found: pd.DataFrame) -> pd.DataFrame:
    """The scores with `EFFECTS`: the score of each form less that of the plain form."""
    plain = [name for name in found if name != "id" and not str(name).endswith(tuple(filter(None, FORMS.values())))]
    effects = {
        f"{name}{end}": found[f"{name}{FORMS[form]}"] - found[name] for name in plain for form, end in EFFECTS.items()
    }
    return found.assign(**effects)


def margin(logps: Sequence[float], choices: Sequence[str]) -> float:
    """The rate of the first choice less the mean rate of the others, in nats a byte."""
    first, *others = (logp / len(choice.encode()) for logp, choice in zip(logps, choices, strict=True))
    return first - fmean(others)


def nothing() -> pd.DataFrame:
    """The scores of a variant without a model: no rows."""
    import pandas as pd

    return pd.DataFrame({"id": pd.Series(dtype=str)})


def metrics(found: pd.DataFrame, questions: Sequence[Question]) -> dict[str, float]:
    """The means of the scores over the questions that have them, and `truth_chance`, what guessing gives."""
    means = {str(name): float(mean) for name, mean in found.drop(columns="id").mean().items()}
    return means | {"truth_chance": chance(questions)}
