"""What stage `sft` trains on where an adapter is of one quality."""

import re

import pytest

from attune.data.dialogue import Dialogue, Turn
from attune.runtime.errors import UserError
from stages.sft import of_quality


def dialogues(*qualities):
    turns = (Turn("user", "I drink."), Turn("assistant", "Since when?"))
    return [Dialogue(f"train/{i}", "annomi", "train", "x", turns, one) for i, one in enumerate(qualities)]


def test_the_dialogues_of_a_quality_in_their_order():
    some = dialogues("high", "low", None, "high")
    assert [one.id for one in of_quality(some, "high")] == ["train/0", "train/3"]
    assert [one.id for one in of_quality(some, "low")] == ["train/1"]


@pytest.mark.parametrize(
    ("qualities", "has"),
    [((None, None), "does not judge its dialogues"), (("low", None), "judges its dialogues low alone")],
)
def test_a_corpus_without_the_quality_says_what_to_leave_out(qualities, has):
    message = f"of quality high, but the train split {has}: take another corpus, or drop it (-S ~sft.by_quality.high)"
    with pytest.raises(UserError, match=re.escape(message)):
        of_quality(dialogues(*qualities), "high")
