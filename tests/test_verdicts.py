"""Verdicts by rule on a run, each on numbers on both sides of its rule."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_report import params

from attune.report.length import at_matched_length
from attune.report.read import DPO_CURVES, DpoCurves, Results
from attune.report.verdicts import cautions, explained_by_length, never_given, no_better, saturated, verdicts

REFERENCE = "I am sorry to hear that ."


def results(**parts):
    """A run of base, sft and sft-dpo of which nothing is known but `parts`; human replies have seven words."""
    empty = {"data": {}, "variants": {}, "intervals": {}, "quality": {}, "signature": {}, "pairs": {}, "sft": {}}
    replies = {"base": [{"reference": REFERENCE}]}
    return Results(**empty | {"scores": {}, "replies": replies, "dpo": DpoCurves(), "win_rates": {}} | parts)


def ends(**bounds):
    """metric=(low, high) as the intervals of a variant."""
    return {
        f"{metric}.{end}": value
        for metric, (low, high) in bounds.items()
        for end, value in (("diff", (low + high) / 2), ("diff_low", low), ("diff_high", high))
    }


def sentences(found):
    return [verdict.sentence for verdict in found]


def test_no_variant_beats_the_reference():
    """The embedded default: sft is closer in ER and F-BERT, and nobody shows a better IP, repeats less or is empty."""
    sft = ends(
        diff_er=(-0.39, -0.02), diff_ip=(-0.35, 0.21), bertscore_f1=(2.9, 5.1), empty_share=(0, 0), reply_words=(1, 2)
    )
    dpo = ends(
        diff_er=(-0.1, 0.41), diff_ip=(-0.6, 0.0), bertscore_f1=(3.9, 5.9), empty_share=(0, 0), reply_words=(1, 2)
    )
    found = no_better(results(intervals={"base": {}, "sft": sft, "sft-dpo": dpo}), "base")
    assert sentences(found) == ["No variant beats base on diff-IP."]
    assert not list(no_better(results(intervals={"base": {}}), "base"))


@pytest.mark.parametrize(("most", "said"), [(95, True), (94, False)])
def test_a_level_saturates_from_95_of_100(most, said):
    levels = pd.DataFrame({"level_ex": [2] * most + [0] * (100 - most), "level_er": [0, 1] * 50})
    found = sentences(saturated(results(examples={"base": levels, "sft": levels})))
    one = f"{most}.0 % of the replies of"
    whole = f"EX saturates: {one} base have level 2; {one} sft have level 2. It can hardly tell them apart."
    assert found == ([whole] if said else [])


def test_a_classifier_never_gives_a_level():
    scores = pd.DataFrame({"level_ip": [0, 2, 2], "reference_level_ip": [0, 0, 2], "level_ex": [0, 1, 0]})
    found = sentences(never_given(results(examples={"base": scores, "sft": scores})))
    assert found == [
        "The IP classifier never gives level 1, in 9 texts: every difference of IP counts 4.",
        "The EX classifier never gives level 2, in 6 texts.",
    ]
    human = scores.assign(reference_level_ip=[0, 1, 2], reference_level_ex=2)
    assert not list(never_given(results(examples={"base": human})))


def test_matched_length_by_hand():
    """Two classes: at most 5 words, 2 and 3 replies, weight 6/5; above, 2 and 1, weight 2/3."""
    ours = pd.DataFrame({"reply_words": [5, 5, 10, 10], "rouge_l": [4.0, 6.0, 9.0, 11.0]})
    theirs = pd.DataFrame({"reply_words": [5, 5, 5, 10], "rouge_l": [1.0, 2.0, 3.0, 7.0]})
    found = at_matched_length(ours, theirs, "rouge_l", list("abcd"), 200, 1)
    assert found.value == pytest.approx((6 / 5 * (5 - 2) + 2 / 3 * (10 - 7)) / (6 / 5 + 2 / 3))
    assert found.replies == 8 and found.low <= found.value <= found.high
    apart = at_matched_length(ours.assign(reply_words=[1, 1, 2, 2]), theirs, "rouge_l", list("abcd"), 200, 1)
    assert apart.replies == 0 and np.isnan(apart.value)


def by_length(effect):
    """Verdicts where ROUGE-L is half the words and noise of SD 2, sft writes four words more, and gains `effect`."""
    random = np.random.default_rng(5)
    words = {"base": random.integers(8, 20, 300), "sft": random.integers(12, 24, 300)}
    scores = {
        name: pd.DataFrame(
            {"reply_words": count, "rouge_l": count / 2 + random.normal(0, 2, 300) + (effect if name == "sft" else 0)},
            index=[f"test/{i}" for i in range(300)],
        )
        for name, count in words.items()
    }
    low = float((scores["sft"]["rouge_l"] - scores["base"]["rouge_l"]).mean()) - 0.5
    known = {name: {"rouge_l": 0.0} for name in scores}
    given = results(variants=known, intervals={"base": {}, "sft": ends(rouge_l=(low, low + 1))}, examples=scores)
    return sentences(explained_by_length(given, params("evaluate.resamples=400")))


def test_length_explains_a_difference_that_is_not_there_at_matched_length():
    (said,) = by_length(0.0)
    assert said.startswith("Length explains ROUGE-L of sft: less base it is +2.") and "at matched length +0.1" in said
    assert "rank correlation with words is +0.7" in said
    assert by_length(2.0) == []


def test_without_a_common_length_nothing_is_told_apart():
    one, other = (
        pd.DataFrame({"reply_words": words, "rouge_l": score}, index=[f"test/{i}" for i in range(30)])
        for words, score in ((5, 10.0), (50, 20.0))
    )
    given = results(
        variants={"base": {}, "sft": {}},
        intervals={"sft": ends(rouge_l=(9.5, 10.5))},
        examples={"base": one, "sft": other},
    )
    said = "less base it is +10.00 [+9.50, +10.50], and only 0 replies are of a common length."
    assert sentences(explained_by_length(given, params())) == [f"Length may explain ROUGE-L of sft: {said}"]


def curves(chosen, rejected, accuracy):
    """Rewards that go from 0 at step 1 to these at step 10, and a constant accuracy."""
    points = ([(1, 0.0), (10, end)] for end in (chosen, rejected))
    return DpoCurves(dict(zip(DPO_CURVES, (*points, [(1, accuracy), (10, accuracy)], []), strict=True)))


HEALTHY = {
    # Of the embedded default, with fewer repeated replies of sft.
    "base": {
        "rouge_l": 14.58,
        "reply_words": 9.0,
        "dist_2_per_reply": 95.0,
        "empty_share": 0.0,
        "repeated_share": 5.0,
        "preference_accuracy": 68.1,
    },
    "sft": {
        "rouge_l": 24.31,
        "reply_words": 6.0,
        "dist_2_per_reply": 85.0,
        "empty_share": 0.0,
        "repeated_share": 9.4,
        "preference_accuracy": 68.1,
    },
    "sft-dpo": {
        "rouge_l": 20.09,
        "reply_words": 11.0,
        "dist_2_per_reply": 97.0,
        "empty_share": 0.6,
        "repeated_share": 0.0,
        "preference_accuracy": 80.6,
    },
}
CLASSIFIERS = {"er_accuracy": 81.0, "er_majority_accuracy": 66.0}
PAIRS = {"e1": {"longer_rejected": 41.4}}


def whole(changed=(), **parts):
    variants = {name: values | dict(changed).get(name, {}) for name, values in HEALTHY.items()}
    given = {"dpo": curves(0.4, -0.2, 0.7), "pairs": PAIRS, "quality": CLASSIFIERS} | parts
    return verdicts(results(variants=variants, intervals={name: {} for name in variants}, **given), params())


def test_a_healthy_run_has_one_sentence():
    found = whole()
    assert sentences(found) == ["17 of 17 checked numbers are within their healthy range."] and cautions(found) == []


@pytest.mark.parametrize(
    ("short", "sentence", "parts"),
    [
        (
            "sft repeats itself",
            "20.6 % of the replies of sft repeat another one, of base 5.0 %: a sign of collapse.",
            {"changed": {"sft": {"repeated_share": 20.6}}},
        ),
        (
            "sft-dpo loops",
            "Of the word pairs of a reply of sft-dpo 54.9 % are distinct, of base 95.0 %: a reply says the same again",
            {"changed": {"sft-dpo": {"dist_2_per_reply": 54.93}}},
        ),
        (
            "sft-dpo writes empty replies",
            "1.2 % of the replies of sft-dpo are empty",
            {"changed": {"sft-dpo": {"empty_share": 1.25}}},
        ),
        (
            "replies of base are long",
            "Replies of base have 33.4 words, human ones 7.0",
            {"changed": {"base": {"reply_words": 33.4}}},
        ),
        ("replies of sft are short", "Replies of sft have 3.4 words", {"changed": {"sft": {"reply_words": 3.4}}}),
        (
            "DPO of sft-dpo taught no preference",
            "sft-dpo prefers the better reply in 68.1 %, sft, from which it starts, in 68.1 %: DPO has not taught it.",
            {"changed": {"sft-dpo": {"preference_accuracy": 68.1}}},
        ),
        (
            "DPO of sft-dpo lost overlap",
            "ROUGE-L of sft-dpo is 19.40, of sft 24.31, of base 14.58",
            {"changed": {"sft-dpo": {"rouge_l": 19.4}}},
        ),
        (
            "chosen replies end below rejected ones",
            "The rewards of DPO end at -2 for chosen and -1 for",
            {"dpo": curves(-2, -1, 0.7)},
        ),
        ("reward accuracy ends at chance", "The reward accuracy of DPO ends at 50 %", {"dpo": curves(1, 0, 0.5)}),
        ("pairs are too easy", "is 98 % in the first fifth of its steps", {"dpo": curves(1, 0, 0.98)}),
        (
            "length separates the pairs of e1",
            "In 65.6 % of the pairs of e1 the",
            {"pairs": {"e1": {"longer_rejected": 65.6}}},
        ),
        (
            "the ER classifier guesses",
            "right in 66 % of held-out posts",
            {"quality": CLASSIFIERS | {"er_accuracy": 66.0}},
        ),
    ],
)
def test_a_number_outside_its_healthy_range_is_named(short, sentence, parts):
    found = whole(**parts)
    assert cautions(found) == [short]
    assert sentence in found[0].sentence
    assert found[-1].sentence == "16 of 17 checked numbers are within their healthy range."


def test_fine_tuning_that_brings_no_overlap_is_named_and_nothing_is_kept_of_it():
    found = whole(changed={"sft": {"rouge_l": 14.0}})
    assert cautions(found) == ["sft is no closer to human replies"]
    assert sentences(found)[-1].startswith("15 of 16")


def test_variants_made_elsewhere_are_compared_over_common_examples():
    one = pd.DataFrame({"reply_words": 5, "rouge_l": np.arange(40.0)}, index=[f"test/{i:02}" for i in range(40)])
    some = one.iloc[::-1].iloc[:25].assign(rouge_l=lambda frame: frame["rouge_l"] + 1)
    given = results(
        variants={"base": {}, "sft": {}},
        intervals={"sft": ends(rouge_l=(0.9, 1.1))},
        examples={"base": one, "sft": some},
    )
    assert not list(explained_by_length(given, replace(params(), seed=3)))
