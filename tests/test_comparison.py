"""Paired differences between models and between ways of training, and the text about them."""

import json
from pathlib import Path

import factory
import numpy as np
import pandas as pd
import pytest

from attune.report import comparison
from attune.report.comparison import (
    Bootstrap,
    against_specialised,
    against_standard,
    differences,
    load_scores,
    save_scores,
)
from attune.report.comparison_page import Pairing, sections, verdict
from attune.report.results import scores_file
from attune.report.tables import direction
from attune.runtime.errors import UserError
from attune.scoring.intervals.bootstrap import distances, resample_weights

SAVED = Path("saved")
BOOTSTRAP = Bootstrap("last", 100, 1)
VARIANTS = {
    "base": factory.variant(),
    "prompted": factory.variant(instruction="data/prompts/counsellor.txt"),
    "sft": factory.variant(model="models/sft"),
    "sft-dpo": factory.variant(model="models/dpo/e3"),
}


def frame(rouge, diff=None, ids=None):
    """Scores of examples whose ids are a, b, …; `diff_er` is equal for all unless given."""
    names = ids or [chr(ord("a") + i) for i in range(len(rouge))]
    return pd.DataFrame({"id": names, "label": "sad", "rouge_l": rouge, "diff_er": diff or [1.0] * len(rouge),
                         "reference_level_er": 1})  # fmt: skip


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(scorer, **frames):
    for name, scores in frames.items():
        path = scores_file(scorer, name.replace("_", "-")).path
        path.parent.mkdir(parents=True, exist_ok=True)
        scores.to_parquet(path, index=False)


def test_differences_by_hand():
    first, second = {".": frame([4.0, 6.0, 8.0, 2.0])}, {".": frame([3.0, 6.0, 5.0, 2.0])}
    found = differences(first, second, Bootstrap("last", 200, 1))
    # (1 + 0 + 3 + 0) / 4; equal scores differ by 0 in every resample. The level of the human replies is no metric.
    assert found["rouge_l.diff"] == 1.0 and found["diff_er.diff"] == found["diff_er.diff_high"] == 0.0
    assert {name.partition(".")[0] for name in found} == {"rouge_l", "diff_er"} and len(found) == 6
    # The mean of the differences (1, 0, 3, 0) under the weights of each resample.
    weights = np.concatenate(list(resample_weights(4, 200, 1)))
    drawn = weights @ np.array([1.0, 0.0, 3.0, 0.0]) / 4
    bounds = [found["rouge_l.diff_low"], found["rouge_l.diff_high"]]
    assert bounds == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-4)
    back = differences(second, first, Bootstrap("last", 200, 1))
    assert back["rouge_l.diff_low"] == -found["rouge_l.diff_high"]


def test_rows_are_paired_by_id():
    write("text", a=frame([1.0, 2.0, 3.0]), b=frame([3.0, 2.0, 1.0], ids=["c", "b", "a"]))
    save_scores(["text"], ["a", "b"], SAVED)
    scores = load_scores(SAVED)
    found = differences(scores["a"], scores["b"], BOOTSTRAP)
    assert found["rouge_l.diff_low"] == found["rouge_l.diff_high"] == 0.0


def test_different_examples_are_refused():
    with pytest.raises(UserError, match=r"different examples \(2 are in one alone\): .* the model alone"):
        differences({".": frame([1.0, 2.0])}, {".": frame([1.0, 2.0], ids=["a", "c"])}, BOOTSTRAP)


def test_dpo_against_each_standard_approach():
    rouge = {"base": 1.0, "prompted": 2.0, "sft": 4.0, "sft_dpo": 3.0}
    write("text", **{name: frame([value] * 3) for name, value in rouge.items()})
    adherence = {name: frame([0.0] * 3).assign(dbt_adherence=10 * value) for name, value in rouge.items()}
    write("dbt", **{name: scores[["id", "dbt_adherence"]] for name, scores in adherence.items()})
    save_scores(["text", "dbt"], VARIANTS, SAVED)
    found = against_standard(VARIANTS, SAVED, BOOTSTRAP)
    assert {variant: list(others) for variant, others in found.items()} == {"sft-dpo": ["prompted", "sft"]}
    values = {to: (cells["rouge_l.diff"], cells["dbt_adherence.diff"]) for to, cells in found["sft-dpo"].items()}
    assert values == {"prompted": (1.0, 10.0), "sft": (-1.0, -10.0)}


def test_scores_survive_the_run_of_the_next_model():
    for model, value in (("tiny", 5.0), ("tiny-gemma", 2.0), ("minilm", 4.0)):
        write("text", base=frame([value, value + 1]), left_over=frame([0.0]))
        save_scores(["text"], ["base"], SAVED / model)
    found = against_specialised({"tiny": False, "tiny-gemma": False, "minilm": True}, SAVED, BOOTSTRAP)
    assert {model: {other: list(cases) for other, cases in others.items()} for model, others in found.items()} == {
        "tiny": {"minilm": ["base"]},
        "tiny-gemma": {"minilm": ["base"]},
    }
    assert [found[model]["minilm"]["base"]["rouge_l.diff"] for model in ("tiny", "tiny-gemma")] == [1.0, -2.0]
    json.dumps(found)
    assert against_specialised({"tiny": False, "tiny-gemma": False}, SAVED, BOOTSTRAP) == {}


def test_saving_empties_the_folder():
    write("text", base=frame([1.0]), sft=frame([1.0]))
    save_scores(["text"], ["base", "sft"], SAVED)
    save_scores(["text"], ["base"], SAVED)
    assert list(load_scores(SAVED)) == ["base"]


def test_missing_scores():
    with pytest.raises(UserError, match="minilm holds no scores: remove the record's JSON and record it again"):
        against_specialised({"minilm": True, "tiny": False}, SAVED, BOOTSTRAP)


def cells(**bounds):
    """Metric to (low, high); the difference is their middle."""
    return {f"{key}.{end}": value for key, (low, high) in bounds.items()
            for end, value in (("diff", (low + high) / 2), ("diff_low", low), ("diff_high", high))}  # fmt: skip


def test_strengths_and_weaknesses():
    pairing = Pairing(
        "tiny vs minilm",
        "tiny",
        "minilm",
        {
            # diff-ER, lower is better: tiny in both cases. F-BERT: higher is better.
            "base": cells(diff_er=(-0.3, -0.1), bertscore_f1=(-2.0, -1.0), diff_ip=(-0.1, 0.1), reply_words=(5.0, 6.0)),
            "sft": cells(diff_er=(-0.2, -0.1), bertscore_f1=(1.0, 2.0), diff_ip=(0.0, 0.1), rouge_l=(-1.0, 1.0)),
        },
    )
    assert verdict(pairing, "Title") == [
        "#### tiny vs minilm: strengths",
        "tiny is better in:\n\n- Empathy and understanding: diff-ER (all) and F-BERT (sft)",
        "#### tiny vs minilm: weaknesses",
        "minilm is better in:\n\n- Empathy and understanding: F-BERT (base)",
        # The number of words has no better direction.
        "No difference beyond chance:\n\n- Empathy and understanding: diff-IP\n- Overlap and diversity: ROUGE-L",
    ]


def test_a_smaller_distance_is_a_strength():
    ratio = "behaviour_reflection_to_question"
    shares = cells(behaviour_questions=(20.0, 30.0), behaviour_questions_distance=(-9.0, -5.0), level_er=(0.2, 0.4),
                   level_er_distance=(0.1, 0.2), **{ratio: (1.0, 2.0), f"{ratio}_distance": (-0.5, 0.5)})  # fmt: skip
    title, strengths, _, weaknesses, neither = verdict(Pairing("", "DPO", "SFT", {"dpo": shares}), "Title")
    assert title == "#### Title: strengths"
    assert strengths.endswith("- Behaviour of a counsellor: distance of questions % (dpo)")
    assert weaknesses.endswith("- Levels of empathy: distance of ER (dpo)")
    assert neither.endswith("- Behaviour of a counsellor: distance of R:Q")


def people(first, human, **more):
    """Levels of the replies and of the human replies, and which of the replies ask (100) and reflect (100)."""
    size = len(first)
    asks, reflects = (more.get(name, [0.0] * size) for name in ("asks", "reflects"))
    return {
        ".": pd.DataFrame({"id": [f"s/{i}:1" for i in range(size)], "level_er": first, "reference_level_er": human}),
        "behaviour": pd.DataFrame({
            "id": [f"s/{i}:1" for i in range(size)],
            "behaviour_questions": asks, "behaviour_reflections": reflects,
            "behaviour_reference_questions": [100.0, 100.0, 0.0, 0.0][:size],
            "behaviour_reference_reflections": [0.0, 0.0, 100.0, 100.0][:size],
        }),
    }  # fmt: skip


def test_distances_by_hand():
    # People's mean level is 1, R:Q 2 / 2, half of the replies ask.
    human = [1, 1, 1, 1]
    first = people([2, 1, 1, 1], human, asks=[100.0, 100.0, 0.0, 0.0], reflects=[0.0, 0.0, 100.0, 100.0])
    second = people([0, 0, 1, 1], human, asks=[100.0] * 4)
    found = differences(first, second, Bootstrap("every", 200, 1))
    values = {name: value for name, value in found.items() if name.endswith(".diff")}
    assert values == {
        "level_er.diff": 0.75, "level_er_distance.diff": 0.25 - 0.5,
        "behaviour_questions.diff": -50.0, "behaviour_questions_distance.diff": -50.0,
        "behaviour_reflections.diff": 50.0, "behaviour_reflections_distance.diff": -50.0,
        "behaviour_reflection_to_question.diff": 1.0, "behaviour_reflection_to_question_distance.diff": -1.0,
    }  # fmt: skip
    # In every resample the first side is as the human replies are, and the other is no nearer.
    assert found["behaviour_questions_distance.diff_high"] <= 0.0
    assert differences(first, first, BOOTSTRAP)["level_er_distance.diff_low"] == 0.0


def test_words_of_references_are_no_human_metric():
    counts = {f"bleu_{kind}_{n}": np.ones(2) for kind in ("match", "total") for n in (1, 2, 3, 4)}
    words = {"bleu_reply_words": np.ones(2), "bleu_reference_words": np.ones(2)}
    levels = {"level_er": np.array([1.0, 2.0]), "reference_level_er": np.zeros(2)}
    assert distances(counts | words | levels, np.ones((1, 2))) == {"level_er_distance": 1.5}


def test_examples_of_a_dialogue_are_resampled_together():
    """Of two dialogues, one better in all examples and one worse, a resample has both or one of them twice."""
    ids = [f"test/{name}:{i}" for name in "ab" for i in (1, 3, 5, 7, 9)]
    first, second = ({".": frame(values, ids=ids)} for values in ([2.0] * 5 + [0.0] * 5, [1.0] * 10))
    apart, together = (differences(first, second, Bootstrap(targets, 500, 1)) for targets in ("last", "every"))
    assert (together["rouge_l.diff_low"], together["rouge_l.diff_high"]) == (-1.0, 1.0)
    assert -1 < apart["rouge_l.diff_low"] < apart["rouge_l.diff_high"] < 1


@pytest.mark.parametrize(("heading", "expected"), [("diff-ER ↓", -1), ("MMLU ↑", 1), ("words", 0), ("listening %", 0)])
def test_direction(heading, expected):
    assert direction(heading) == expected


def test_sections_of_a_record():
    between = {"tiny": {"minilm": {"base": cells(diff_er=(-0.3, -0.1), rouge_l=(-1.0, 2.0))}}}
    parts = {"tiny": {comparison.STANDARD: {"dpo": {"sft": cells(diff_er=(0.1, 0.2))}}}, "minilm": {}}
    models, training = sections(parts, between)
    assert models.startswith("### Generalist against specialised models\n")
    assert "| tiny vs minilm, base | -0.200 (-0.300 to -0.100)* |" in models
    assert "+0.50 (-1.00 to +2.00) |" in models
    assert "Of the 2 intervals behind the strengths and weaknesses, about 0 would" in models
    assert "stands in for" not in models
    assert (
        "#### tiny vs minilm: strengths\n\ntiny is better in:\n\n- Empathy and understanding: diff-ER (base)" in models
    )
    assert "minilm is better in:\n\n- nothing\n" in models
    assert "| tiny, dpo vs sft | +0.150 (+0.100 to +0.200)* |" in training
    assert "the standard approach is better in:\n\n- Empathy and understanding: diff-ER (dpo vs sft)" in training
    instead = sections(parts | {"minilm": {"stands_in_for": "biobert"}}, between)[0]
    assert "minilm stands in for biobert (`model.stands_in_for`): it was not made for a domain" in instead
    # A record of one model has no model name; an old record has no comparisons.
    (alone,) = sections({"": parts["tiny"]}, {})
    assert "| dpo vs sft | +0.150" in alone
    assert sections({"": {}}, {}) == []
