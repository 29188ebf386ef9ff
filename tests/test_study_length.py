"""The differences of studies at matched length, over seeds."""

import numpy as np
import pandas as pd
import pytest

from attune.report.length import at_matched_length
from attune.tools.study_differences import draws
from attune.tools.study_length import at_length, of_metrics

IDS = [f"test/{number:03}" for number in range(200)]


def scores(words, values) -> pd.DataFrame:
    return pd.DataFrame({"reply_words": words, "level_er": values}, index=IDS)


def sides(seed, warmer):
    """Replies of ours are twice as long; a level is half the number of words, and higher by `warmer` in ours."""
    rng = np.random.default_rng(seed)
    theirs, ours = rng.integers(1, 5, 200), rng.integers(1, 9, 200)
    return scores(ours, ours / 2 + warmer), scores(theirs, theirs / 2)


def test_a_difference_of_length_alone_is_gone_and_another_one_stays():
    # Classes hold one or two numbers of words: what they leave of the difference is small.
    for warmer in (0.0, 0.7):
        pairs = {seed: sides(seed, warmer) for seed in (13, 14, 15)}
        plain = np.mean([ours["level_er"].mean() - theirs["level_er"].mean() for ours, theirs in pairs.values()])
        found = at_length(pairs, "level_er", "last", draws(3, 500), 0)
        assert plain - warmer > 0.8 and abs(found.value - warmer) < 0.1
        assert found.low <= found.value <= found.high and found.high - found.low < 0.2
        assert found.replies < 1200, "replies of more than four words have none of theirs beside them"


def test_one_seed_is_as_in_the_summary():
    ours, theirs = sides(1, 0.3)
    found = at_length({13: (ours, theirs)}, "level_er", "last", draws(1, 1000), 13)
    assert found == pytest.approx(at_matched_length(ours, theirs, "level_er", IDS, 1000, 13))


def test_seeds_have_their_own_examples_and_a_missing_score_is_left_out():
    ours, theirs = sides(1, 0.5)
    halves = {13: (ours[:100], theirs[:100]), 14: (ours[100:], theirs[100:])}
    found = at_length(halves, "level_er", "last", draws(2, 500), 0)
    assert abs(found.value - 0.5) < 0.15 and found.low < 0.5 < found.high
    theirs.iloc[7:, 1] = np.nan
    few = at_length({13: (ours, theirs)}, "level_er", "last", draws(1, 500), 0)
    assert few.replies <= 14


def test_without_a_common_length_there_is_none():
    ours, theirs = scores(20, 1.0), scores(3, 0.0)
    assert at_length({13: (ours, theirs)}, "level_er", "last", draws(1, 500), 0) is None
    unknown = ours.assign(level_er=np.nan)
    for pairs in ({13: (ours, unknown)}, {13: (ours, ours), 14: (ours, unknown)}):
        assert at_length(pairs, "level_er", "last", draws(len(pairs), 500), 0) is None


def test_only_scores_of_replies_are_compared():
    questions = pd.DataFrame({"mmlu": [1.0, 0.0]}, index=["astronomy/0", "astronomy/1"])
    ours, theirs = ({"text": one[["reply_words"]].assign(preference_accuracy=1.0), "epitome": one[["level_er"]],
                     "mmlu": questions} for one in sides(1, 0.5))  # fmt: skip
    columns = [("text", "reply_words"), ("text", "preference_accuracy"), ("text", "bleu_4"), ("epitome", "level_er"),
               ("mmlu", "mmlu")]  # fmt: skip
    assert set(of_metrics({13: (ours, theirs)}, columns, "last", draws(1, 500), 0)) == {"level_er"}
    del ours["text"]
    assert of_metrics({13: (ours, theirs)}, columns, "last", draws(1, 500), 0) == {}
