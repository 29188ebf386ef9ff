"""The training data of stage `sft` for the adapter of a quality."""

import re
from pathlib import Path

import factory
import pytest

from attune.data.dialogue import Dialogue, Turn
from attune.runtime.errors import UserError
from attune.training.sft.fine_tune import dialogues_of_quality, instructed

PATH = Path("data/dialogues/train.parquet")


def dialogues(*qualities):
    turns = (Turn("user", "I drink."), Turn("assistant", "Since when?"))
    return [Dialogue(f"train/{i}", "annomi", "train", "x", turns, quality) for i, quality in enumerate(qualities)]


def test_an_instruction_is_a_system_turn(tmp_path):
    some, file = dialogues("high"), tmp_path / "kind.txt"
    assert instructed(some, factory.sft()) == some
    file.write_text("Be kind.\n", encoding="utf-8")
    (told,) = instructed(some, factory.sft(instruction=str(file)))
    assert told.turns == (Turn("system", "Be kind."), *some[0].turns)
    with pytest.raises(UserError, match=r"none\.txt is missing: sft names it as its instruction"):
        instructed(some, factory.sft(instruction="none.txt"))


def test_dialogues_of_a_quality():
    some = dialogues("high", "low", None, "high")
    assert [dialogue.id for dialogue in dialogues_of_quality(some, "high", PATH)] == ["train/0", "train/3"]
    assert [dialogue.id for dialogue in dialogues_of_quality(some, "low", PATH)] == ["train/1"]


@pytest.mark.parametrize(
    ("qualities", "has"),
    [((None, None), "has no quality labels"), (("low", None), "has only dialogues of quality low")],
)
def test_no_dialogues_of_a_quality(qualities, has):
    message = (
        f"{PATH}: an adapter needs dialogues of quality high, but the train split {has}: choose another "
        "corpus, or drop the adapter (-S ~adapters.sft-high)"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        dialogues_of_quality(dialogues(*qualities), "high", PATH)
