"""Template share: replies with the commonest opening and the commonest sequence of acts."""

import pytest

from attune.scoring.text.templates import acts, opening, per_reply


@pytest.mark.parametrize(
    ("reply", "sequence"),
    [
        ("I'm so sorry to hear that. What happened?", ["sorry", "question"]),
        ("I\u2019m so happy! You must be proud.", ["self", "user"]),
        ("You should talk to her. I hope it goes well!", ["advice", "wish"]),
        ("Great! ... That dog is lovely", ["exclamation", "statement", "statement"]),
        ("What is it?!  Well.", ["question", "statement"]),
        ("  ", []),
    ],
)
def test_acts_of_sentences(reply, sequence):
    assert list(acts(reply)) == sequence


def test_the_first_words_are_the_metrics_own_tokens():
    assert opening("I'm  SO sorry.") == opening("i'm so sorry about it") and opening("Hi!") == ("hi", "!")


def test_one_reply_for_everybody_has_the_whole_share():
    same = per_reply(["I am sorry. Why?"] * 4)
    assert same == {"opening_share": [100.0] * 4, "act_share": [100.0] * 4}
    # Other words in the same form: only the acts see it.
    formed = per_reply([f"I am so {word}. How {word} is it?" for word in ("sad", "glad", "mad", "bad")])
    assert formed["act_share"] == [100.0] * 4 and formed["opening_share"] == [100.0] * 4
    varied = per_reply(["No.", "Why?", "", "Wow!"])
    assert sum(varied["opening_share"]) == sum(varied["act_share"]) == 100.0
    assert per_reply([]) == {"opening_share": [], "act_share": []}
    assert per_reply(["", ""])["act_share"] == [0.0, 0.0]


def test_order_does_not_matter():
    replies = ["I am so sad.", "You won!", "Why?", "You won it!"]
    assert [shares[::-1] for shares in per_reply(replies[::-1]).values()] == list(per_reply(replies).values())
