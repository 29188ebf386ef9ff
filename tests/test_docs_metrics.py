import doctest
import re
from pathlib import Path

import pytest

from attune.classifiers.behaviour import scores as behaviour_metrics
from attune.classifiers.behaviour.classifier import BEHAVIOURS
from attune.classifiers.dbt import scores as dbt_metrics
from attune.classifiers.dbt.classifier import LABELS
from attune.classifiers.epitome.model import MECHANISMS
from attune.labels.miti import ADHERENCE
from attune.scoring.mmlu.harness import ANSWER_COLUMNS, GROUPS
from attune.scoring.text.bertscore import NAMES
from attune.scoring.text.overlap import overlap
from attune.scoring.text.templates import SHARES
from attune.training.dpo.movement import Movement

MEASURES = ("accuracy", "macro_f1", "rationale_f1", "majority_accuracy", "majority_macro_f1", "valid_accuracy")
PAGE = Path(__file__).parent.parent / "docs/metrics.md"
TEXT = PAGE.read_text(encoding="utf-8")
CARDS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))


def test_the_examples_are_true():
    # The fences are blanked, or doctest would take the closing one for output; the lines keep their numbers.
    text = re.sub(r"^```.*$", "", TEXT, flags=re.MULTILINE)
    page = doctest.DocTestParser().get_doctest(text, {}, "metrics.md", str(PAGE), 0)
    report = []
    results = doctest.DocTestRunner().run(page, out=report.append)
    assert results.attempted == TEXT.count(">>> ")
    assert not results.failed, "".join(report)


def test_every_metric_has_a_card():
    mmlu = {f"acc{group}{end}" for group in ("", *(f"_{name}" for name in GROUPS)) for end in ("", "_stderr")}
    mmlu |= set(ANSWER_COLUMNS)
    bounds = {f"*.{end}" for end in ("low", "high", "diff", "diff_low", "diff_high")}
    empathy = {f"{kind}_{short}" for kind in ("diff", "level", "reference_level") for short in MECHANISMS.values()}
    classifiers = {f"*_{name}" for name in MEASURES}
    classifiers |= {f"published_{name}" for name in ("accuracy", "kappa", "valid_kappa", "gap")}
    dbt = set(dbt_metrics.metrics(dbt_metrics.per_example([[0.2] * 5], [[0.2] * 5])))
    dbt |= {f"f1_{label}" for label in LABELS} | {"calibration_error"}
    replies = {f"{side}{name}" for name in SHARES for side in ("", "reference_")}
    replies |= set(overlap(["a"], ["a"])) | {"preference_accuracy"} | empathy
    behaviour = set(behaviour_metrics.metrics(behaviour_metrics.per_example([[0.2] * 6], [[0.2] * 6])))
    behaviour |= {f"behaviour_f1_{label}" for label in BEHAVIOURS} | {"behaviour_calibration_error"}
    behaviour |= {f"miti_f1_{label.replace('-', '_')}" for label in ADHERENCE} | {"miti_calibration_error"}
    leaks = {"*_in_test", "*_in_valid", "*_checked", "miti_left_out", "levels_of_held_out"}
    metrics = set(Movement._fields) | leaks | dbt | behaviour | replies | classifiers | mmlu | set(NAMES) | bounds
    assert {name for title in CARDS for name in title.split(", ")} == metrics


@pytest.mark.parametrize("title", CARDS)
def test_a_card_is_complete(title):
    for part in (
        "**Formula.**",
        "**Range, direction.**",
        "**Aggregation.**",
        "**Source.**",
        ">>> ",
        "**Known failure.**",
    ):
        assert part in CARDS[title]
