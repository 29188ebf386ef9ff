"""The paired bootstrap: known truths, and the stage that writes the intervals."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import factory
import numpy as np
import pandas as pd
import pytest
from sacrebleu.metrics.bleu import BLEU

from attune.runtime.errors import DataError
from attune.scoring.intervals.bootstrap import corpus_bleu, intervals, resample_weights
from attune.scoring.text import overlap
from stages.intervals import main

PARAMS = factory.params()
PREDICTIONS = ["i am so sorry to hear that", "yes", "", "that is great !", "what happened to her ?", "zzz zz"]
REFERENCES = ["i am so sorry for that", "no", "oh no", "that is really great !", "what happened to your dog ?", "a b c"]


def simulated(seed, examples=60):
    """Two variants over examples that are hard or easy for both: true means 1.0 and 0.7."""
    random = np.random.default_rng(seed)
    difficulty = random.normal(0, 1, examples)
    own, other = (mean + difficulty + random.normal(0, 0.3, examples) for mean in (1.0, 0.7))
    return {"x": own}, {"x": other}


def test_coverage():
    """95 % of the intervals hold the truth; a percentile bootstrap of 60 examples falls short by a point or two."""
    from scipy.stats import binom

    repetitions, held, held_difference = 400, 0, 0
    for seed in range(repetitions):
        found = intervals(*simulated(seed), resamples=300, seed=seed)
        held += found["x.low"] <= 1.0 <= found["x.high"]
        held_difference += found["x.diff_low"] <= 0.3 <= found["x.diff_high"]
    # Between the 1e-4 quantiles of what coverages of 0.92 and of 0.96 would give.
    low, high = binom.ppf(1e-4, repetitions, 0.92), binom.ppf(1 - 1e-4, repetitions, 0.96)
    assert low <= held <= high and low <= held_difference <= high


def test_pairing_narrows_the_difference():
    found = intervals(*simulated(1), resamples=1000, seed=1)
    assert found["x.diff_high"] - found["x.diff_low"] < 0.6 * (found["x.high"] - found["x.low"])


def test_width_of_normal_theory():
    values = np.random.default_rng(3).normal(0, 2, 400)
    found = intervals({"x": values}, None, resamples=4000, seed=1)
    assert found["x.high"] - found["x.low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.06)
    assert found["x.low"] < values.mean() < found["x.high"]


def test_equal_variants():
    own = {"x": np.array([1.0, 2.0, np.nan, 4.0])} | counts()
    own["x"] = np.resize(own["x"], len(PREDICTIONS))
    found = intervals(own, own, resamples=200, seed=1)
    assert {value for key, value in found.items() if ".diff" in key} == {0.0}
    assert found["x.low"] < found["x.high"] and found["bleu_4.low"] < found["bleu_4.high"]


def test_constant_has_no_width():
    found = intervals({"x": np.full(9, 3.5)}, None, resamples=100, seed=1)
    assert found == {"x.low": 3.5, "x.high": 3.5}


def test_missing_values():
    found = intervals({"x": np.array([np.nan, 5.0, 5.0, 5.0])}, {"x": np.array([1.0, 2.0, np.nan, 2.0])}, 500, seed=1)
    assert (found["x.low"], found["x.high"]) == (5.0, 5.0)
    assert found["x.diff"] == pytest.approx(5 - 5 / 3)
    assert found["x.diff_low"] == 3.0 and found["x.diff_high"] == 4.0


def test_resample_weights():
    weights = np.concatenate(list(resample_weights(20, 3000, seed=1)))
    assert weights.shape == (3000, 20) and set(weights.sum(axis=1)) == {20}
    # A count is binomial(20, 1/20): variance 0.95; the mean of 3000 has a standard deviation of 0.018.
    assert weights.mean(axis=0) == pytest.approx(np.ones(20), abs=5 * 0.018)
    assert weights.var() == pytest.approx(0.95, rel=0.05)


def test_clusters_are_resampled_together():
    names = ["b", "a", "b", "c", "a", "b"]
    weights = np.concatenate(list(resample_weights(6, 400, 1, names)))
    for first, second in ((0, 2), (0, 5), (1, 4)):
        assert (weights[:, first] == weights[:, second]).all()
    assert set((weights[:, [0, 1, 3]]).sum(axis=1)) == {3} and weights[:, [0, 1, 3]].var() > 0.5
    alone = [list(resample_weights(6, 50, 1, groups)) for groups in (None, list("fedcba"))]
    assert np.array_equal(*alone)


def test_coverage_with_clusters():
    """Replies of one dialogue are correlated: intervals over single replies are far too narrow."""
    from scipy.stats import binom

    repetitions, held = 200, Counter()
    names = [str(i // 12) for i in range(480)]
    for seed in range(repetitions):
        random = np.random.default_rng(seed)
        values = {"x": np.repeat(random.normal(0, 1, 40), 12) + random.normal(0, 1, 480)}
        for case, groups in (("clustered", names), ("independent", None)):
            found = intervals(values, None, 200, seed, groups)
            held[case] += found["x.low"] <= 0 <= found["x.high"]
    low, high = binom.ppf(1e-4, repetitions, 0.91), binom.ppf(1 - 1e-4, repetitions, 0.96)
    assert low <= held["clustered"] <= high and held["independent"] < 0.7 * repetitions


def test_resamples_in_parts(monkeypatch):
    monkeypatch.setattr("attune.scoring.intervals.bootstrap.MAX_WEIGHTS", 70)
    parts = list(resample_weights(20, 10, seed=1))
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    # No two resamples are equal.
    assert len({row.tobytes() for part in parts for row in part}) == 10


def counts(predictions=PREDICTIONS, references=REFERENCES):
    return {
        name: np.array(column, dtype=float) for name, column in overlap.bleu_counts(predictions, references).items()
    }


def test_bleu_of_resamples_equals_sacrebleu():
    weights = np.concatenate([np.ones((1, 6)), np.eye(6), *resample_weights(6, 60, seed=2)])
    for order in (1, 2, 3, 4):
        ours = corpus_bleu(counts(), weights, order)
        for row, score in zip(weights.astype(int), ours, strict=True):
            predictions, references = (np.repeat(texts, row).tolist() for texts in (PREDICTIONS, REFERENCES))
            expected = BLEU(max_ngram_order=order, lowercase=True).corpus_score(predictions, [references]).score
            assert score == pytest.approx(expected, abs=1e-9)


def test_difference_of_bleu():
    other = [reference.replace("sorry", "sad") for reference in REFERENCES]
    found = intervals(counts(), counts(other), resamples=100, seed=1)
    expected = overlap.bleu(PREDICTIONS, REFERENCES)["bleu_2"] - overlap.bleu(other, REFERENCES)["bleu_2"]
    assert found["bleu_2.diff"] == pytest.approx(expected)
    assert found["bleu_2.diff_low"] <= expected <= found["bleu_2.diff_high"]


@pytest.mark.parametrize("other", [{"x": np.ones(3)}, {"x": np.ones(0)}])
def test_columns_of_different_lengths(other):
    with pytest.raises(ValueError, match="expected as many"):
        intervals({"x": np.ones(4)}, other, 100, seed=1)


# The stage.


def scores(shift=0.0, examples=50, seed=1):
    random = np.random.default_rng(seed)
    preferences = random.choice([0.0, 100.0, np.nan], examples)
    return pd.DataFrame(
        {
            "id": [f"test/{i}" for i in range(examples)],
            "label": "sad",
            "rouge_l": random.normal(20 + shift, 5, examples),
            "diff_er": random.integers(0, 5, examples),
            "reference_level_er": 1,
            "preference_accuracy": preferences,
            **{
                name: np.resize(column, examples)
                for name, column in overlap.bleu_counts(PREDICTIONS, REFERENCES).items()
            },
        }
    )


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(frame, variant):
    path = Path("data/scores/text") / f"{variant}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)


def read(variant):
    return json.loads(Path(f"metrics/intervals/text/{variant}.json").read_text())


def test_stage_compares_to_the_reference_variant():
    write(scores(), "base")
    write(scores(shift=9, seed=2), "sft")
    main("base", "text", PARAMS)
    main("sft", "text", PARAMS)
    assert not [key for key in read("base") if "diff_low" in key]
    assert {key.rpartition(".")[2] for key in read("sft")} == {"low", "high", "diff", "diff_low", "diff_high"}
    names = {"rouge_l", "diff_er", "preference_accuracy", "bleu_1", "bleu_2", "bleu_3", "bleu_4"}
    assert {key.rpartition(".")[0] for key in read("sft")} == names
    expected = scores(shift=9, seed=2)["rouge_l"].mean() - scores()["rouge_l"].mean()
    assert read("sft")["rouge_l.diff"] == round(expected, 4)
    assert 0 < read("sft")["rouge_l.diff_low"] < expected < read("sft")["rouge_l.diff_high"]


def test_stage_writes_equal_bytes_for_any_order():
    write(scores(), "base")
    write(scores(seed=2), "sft")
    main("sft", "text", PARAMS)
    first = Path("metrics/intervals/text/sft.json").read_bytes()
    write(scores().sample(frac=1, random_state=5), "base")
    write(scores(seed=2).iloc[::-1], "sft")
    main("sft", "text", PARAMS)
    assert Path("metrics/intervals/text/sft.json").read_bytes() == first
    main("sft", "text", replace(PARAMS, seed=14))
    assert Path("metrics/intervals/text/sft.json").read_bytes() != first


def test_metric_without_values():
    write(scores().assign(preference_accuracy=np.nan), "base")
    write(scores(seed=2), "sft")
    main("base", "text", PARAMS)
    main("sft", "text", PARAMS)
    assert "preference_accuracy.low" not in read("base")
    assert "preference_accuracy.low" in read("sft") and "preference_accuracy.diff" not in read("sft")


def test_stage_clusters_by_dialogue():
    sessions = scores().assign(id=[f"test/{i // 10}:{i % 10}" for i in range(50)], rouge_l=[*range(50)])
    write(sessions, "base")
    widths = []
    for targets in ("last", "every"):
        main("base", "text", replace(PARAMS, context=factory.context(targets=targets)))
        widths.append(read("base")["rouge_l.high"] - read("base")["rouge_l.low"])
    assert widths[1] > 2 * widths[0]


def test_another_reference():
    write(scores(), "base")
    write(scores(seed=2), "sft")
    main("base", "text", replace(PARAMS, evaluate=replace(PARAMS.evaluate, reference="sft")))
    assert "rouge_l.diff" in read("base")


def test_variants_with_different_examples():
    write(scores(examples=49), "base")
    write(scores(), "sft")
    with pytest.raises(DataError, match="the two variants differ in 1 examples: run `dvc repro`"):
        main("sft", "text", PARAMS)


def test_missing_file():
    write(scores(), "sft")
    with pytest.raises(DataError, match=r"data/scores/text/base\.parquet is missing: run `dvc repro evaluate@base`"):
        main("sft", "text", PARAMS)
