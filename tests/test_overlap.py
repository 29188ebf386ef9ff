"""Overlap metrics: golden values with their arithmetic, and edge cases with their reason."""

from math import exp, sqrt

import pytest
from sacrebleu.metrics import BLEU

from attune.scoring.text import overlap

PREDICTIONS = ["I am so sorry to hear that.", "That is great news!", "what happened ?", "I am so sorry to hear that."]
REFERENCES = ["I'm so sorry to hear that!", "That is such great news.", "Oh no, what happened?", "Are you okay now?"]
ORDERS = (1, 2, 3, 4)

TOKENS = [
    pytest.param("Hi, you!", ["hi", ",", "you", "!"], id="case and punctuation"),
    pytest.param("don't", ["don't"], id="13a leaves the apostrophe in the word"),
    pytest.param("well-being", ["well-being"], id="a hyphen splits only after a digit"),
    pytest.param("3.5 of 3.", ["3.5", "of", "3", "."], id="a dot between digits does not split"),
    pytest.param("ok...", ["ok", ".", ".", "."], id="each mark is a token"),
    pytest.param("great😀 😀😀", ["great😀", "😀😀"], id="an emoji stays on its word"),
    pytest.param("“hi”", ["“hi”"], id="curly quotes are not Western punctuation"),
    pytest.param("one\ntwo\r\nthree", ["one", "two", "three"], id="a line break is a space"),
    pytest.param("well-\nbeing", ["wellbeing"], id="unless a hyphen stands before it"),
    pytest.param("well-\n", ["well-"], id="but not at the end, which is stripped first"),
    pytest.param("&quot;hi&quot; &lt;3", ['"', "hi", '"', "<", "3"], id="four entities are unescaped"),
    pytest.param("&amp;lt;", ["<"], id="and twice, as &amp; comes before &lt;"),
    pytest.param("don&#39;t", ["don", "&", "#", "39", ";", "t"], id="other entities are not"),
    pytest.param("<SKIPPED>", [], id="13a deletes the mark of a skipped segment"),
    pytest.param(" \t\u00a0\n", [], id="white space, the no-break space too"),
    pytest.param("\u200b", ["\u200b"], id="a zero-width space is no white space"),
    pytest.param("", [], id="nothing"),
]


@pytest.mark.parametrize(("text", "expected"), TOKENS)
def test_tokens(text, expected):
    assert overlap.tokens(text) == expected
    assert overlap.lengths([text, "a b"]) == [len(expected), 2]


@pytest.mark.parametrize("text", [case.values[0] for case in TOKENS])
def test_bleu_counts_the_same_tokens(text):
    score = BLEU(lowercase=True, tokenize="13a").corpus_score([text], [[text]])
    assert score.sys_len == score.ref_len == len(overlap.tokens(text))


# BLEU


@pytest.mark.parametrize("n", ORDERS)
def test_bleu_equals_sacrebleu(n):
    direct = BLEU(max_ngram_order=n, lowercase=True, tokenize="13a").corpus_score(PREDICTIONS, [REFERENCES]).score
    assert overlap.bleu(PREDICTIONS, REFERENCES)[f"bleu_{n}"] == direct > 0


def test_bleu_by_hand():
    # prediction: the cat sat          3 unigrams, 2 bigrams, 1 trigram; matched 2 (the, cat), 1 (the cat), 0
    # reference:  the cat is here      4 tokens: brevity penalty exp(1 - 4/3)
    # exp smoothing: the first order without a match counts 1/2 match: 1 / (2 x 1); no 4-gram at all: BLEU-4 is 0
    brevity = exp(1 - 4 / 3)
    expected = {
        "bleu_1": 100 * brevity * 2 / 3,
        "bleu_2": 100 * brevity * sqrt(2 / 3 * 1 / 2),
        "bleu_3": 100 * brevity * (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3),
        "bleu_4": 0.0,
    }
    assert overlap.bleu(["the cat sat"], ["the cat is here"]) == pytest.approx(expected)


def test_bleu_clips_repeated_words():
    # "so so so so" against "so sad to hear": 4 unigrams, one matched (clipped), equal lengths: 1/4
    assert overlap.bleu(["so so so so"], ["so sad to hear"])["bleu_1"] == pytest.approx(25.0)


def test_empty_replies_enter_bleu_by_brevity_only():
    # 4 tokens against 4 + 4: precision 1 in every order, brevity penalty exp(1 - 8/4)
    scores = overlap.bleu(["a b c d", ""], ["a b c d", "e f g h"])
    assert scores == pytest.approx(dict.fromkeys(scores, 100 * exp(-1)))


# ROUGE


def test_rouge_by_hand():
    predictions = ["i am sorry", "that is great", "so sorry"]
    references = ["i am so sorry", "great that is", "happy day"]
    # 1: unigrams 3 of 3 and of 4: F = 2 x 1 x 3/4 / (7/4) = 6/7; bigrams 1 ("i am") of 2 and of 3: F = 2/5;
    #    longest common subsequence "i am sorry": as unigrams, 6/7
    # 2: the same words: 1; bigrams 1 ("that is") of 2 and of 2: 1/2; subsequence "that is", 2 of 3 and of 3: 2/3
    # 3: nothing in common
    expected = {
        "rouge_1": [600 / 7, 100, 0],
        "rouge_2": [40, 50, 0],
        "rouge_l": [600 / 7, 200 / 3, 0],
    }
    for name, scores in overlap.rouge_per_example(predictions, references).items():
        assert scores == pytest.approx(expected[name])
    scores = overlap.overlap(predictions, references)
    # (6/7 + 1 + 0) / 3 = 13/21; (2/5 + 1/2 + 0) / 3 = 3/10; (6/7 + 2/3 + 0) / 3 = 32/63
    assert [scores[name] for name in expected] == pytest.approx([1300 / 21, 30, 3200 / 63])


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        pytest.param("", "I see.", 0, id="an empty reply"),
        pytest.param("", "", 0, id="an empty reply, though the reference is empty as well"),
        pytest.param("I see.", "", 0, id="an empty reference"),
        pytest.param("YES", "yes", 100, id="case does not count"),
        # yes ! | yes .  one of two and of two
        pytest.param("yes!", "yes.", 50, id="punctuation counts: rouge-score's own tokeniser would say 100"),
        pytest.param("😀", "😀", 100, id="an emoji counts: rouge-score's own tokeniser would say 0"),
        pytest.param("a\nb", "a b", 100, id="a line break is a space"),
        # so so so | so sad  one matched (clipped), of three and of two: 2 x 1/3 x 1/2 / (5/6)
        pytest.param("so so so", "so sad", 40, id="repeated words are clipped"),
    ],
)
def test_rouge_1_edge_cases(prediction, reference, expected):
    assert overlap.rouge_per_example([prediction], [reference])["rouge_1"] == pytest.approx([expected])


# Dist


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        # unigrams a b a | a c: 3 of 5; bigrams ab ba | ac: 3 of 3; trigrams aba: 1 of 1
        # per reply: 2/3 and 1; 1 and 1; 1 and none
        pytest.param(["a b a", "a c"], (60, 100, 100, 250 / 3, 100, 50), id="by hand"),
        # so so so so: 1 of 4, 1 of 3, 1 of 2
        pytest.param(["so so so so"], (25, 100 / 3, 50, 25, 100 / 3, 50), id="repeated words"),
        pytest.param(["yes"], (100, 0, 0, 100, 0, 0), id="one word has no bigrams"),
        # yes | (nothing): the empty reply adds no n-gram, but halves the mean per reply
        pytest.param(["yes", ""], (100, 0, 0, 50, 0, 0), id="an empty reply"),
        pytest.param(["", " "], (0, 0, 0, 0, 0, 0), id="all empty"),
        # hi ! hi .: 3 of 4; "hi !", "! hi", "hi .": 3 of 3; 2 of 2
        pytest.param(["Hi!\nhi."], (75, 100, 100, 75, 100, 100), id="case, line break and punctuation"),
        # 😀 😀: 1 of 2; 1 of 1; none
        pytest.param(["😀 😀"], (50, 100, 0, 50, 100, 0), id="emoji"),
        # no bigram crosses from reply to reply: ab | ab, not ba
        pytest.param(["a b", "a b"], (50, 50, 0, 100, 100, 0), id="replies are counted apart"),
    ],
)
def test_distinct(replies, expected):
    names = [f"dist_{n}{suffix}" for suffix in ("", "_per_reply") for n in (1, 2, 3)]
    assert overlap.distinct(replies) == pytest.approx(dict(zip(names, expected, strict=True)))


# Replies


@pytest.mark.parametrize(
    ("replies", "words", "empty", "repeated"),
    [
        # 3 + 3 + 1 + 0 tokens over 4; "i see ." twice
        pytest.param(["I see.", "i  see .", "no", ""], 1.75, 25, 50, id="same but for case and spaces"),
        pytest.param(["yes", "yes!"], 1.5, 0, 0, id="punctuation makes another reply"),
        pytest.param(["", " ", "<skipped>"], 0, 100, 0, id="empty replies are not repeated"),
        pytest.param(["a", "a", "a", "b", "b"], 1, 0, 100, id="every copy counts, not only the second one"),
        pytest.param(["ok"], 1, 0, 0, id="one reply"),
    ],
)
def test_reply_statistics(replies, words, empty, repeated):
    expected = {"reply_words": words, "empty_share": empty, "repeated_share": repeated}
    assert overlap.reply_statistics(replies) == pytest.approx(expected)


@pytest.mark.parametrize(("reference", "rejected", "expected"), [(-1.0, -2.0, 100), (-2.0, -2.0, 50), (-9.0, -0.1, 0)])
def test_preferred_is_the_likelier_reply(reference, rejected, expected):
    assert overlap.preferred(reference, rejected) == expected


# All together


def test_identical_texts():
    scores = overlap.overlap(REFERENCES, REFERENCES)
    names = [f"bleu_{n}" for n in ORDERS] + ["rouge_1", "rouge_2", "rouge_l"]
    assert {name: scores[name] for name in names} == pytest.approx(dict.fromkeys(names, 100.0))


def test_identical_single_words():
    expected = {"bleu_1": 100, "bleu_2": 0, "bleu_3": 0, "bleu_4": 0, "rouge_1": 100, "rouge_2": 0, "rouge_l": 100}
    scores = overlap.overlap(["yes"], ["Yes"])
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_only_empty_replies():
    scores = overlap.overlap(["", "\n"], ["I see.", ""])
    assert scores.pop("empty_share") == 100
    assert scores == dict.fromkeys(scores, 0)


def test_order_of_examples():
    turned = overlap.overlap(PREDICTIONS[::-1], REFERENCES[::-1])
    assert turned == overlap.overlap(PREDICTIONS, REFERENCES)


def test_pairing_of_replies_and_references():
    once, turned = overlap.overlap(PREDICTIONS, REFERENCES), overlap.overlap(PREDICTIONS[::-1], REFERENCES)
    assert {name for name in once if once[name] != turned[name]} >= {"bleu_1", "rouge_1", "rouge_2", "rouge_l"}


def test_duplicated_corpus():
    # Every order has a match here. Without one, smoothing sees the doubled counts, and BLEU does move.
    once, twice = overlap.overlap(PREDICTIONS, REFERENCES), overlap.overlap(PREDICTIONS * 2, REFERENCES * 2)
    halved = {f"dist_{n}": once[f"dist_{n}"] / 2 for n in (1, 2, 3)}  # as many distinct n-grams, twice as many in all
    assert twice == pytest.approx({**once, **halved, "repeated_share": 100})


def test_smoothing_of_a_duplicated_corpus():
    # No bigram matches: its smoothed precision is 1/2 match over 1 bigram, then over 2; BLEU-2 falls by sqrt(1/2).
    once, twice = overlap.bleu(["a b"], ["b a"]), overlap.bleu(["a b"] * 2, ["b a"] * 2)
    assert once["bleu_2"] == pytest.approx(100 * sqrt(1 / 2))
    assert twice["bleu_2"] == pytest.approx(100 * sqrt(1 / 4))


@pytest.mark.parametrize("metric", [overlap.overlap, overlap.bleu, overlap.signature])
def test_lists_of_different_lengths(metric):
    with pytest.raises(ValueError, match="different numbers of examples: 2 and 1"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no examples"):
        metric([], [])


@pytest.mark.parametrize("metric", [overlap.distinct, overlap.reply_statistics])
def test_no_replies(metric):
    with pytest.raises(ValueError, match="no examples"):
        metric([])


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_log_probability_that_is_not_finite(value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        overlap.preferred(-1.0, value)


def test_signature():
    signature = overlap.signature(PREDICTIONS, REFERENCES)
    scorer = BLEU(lowercase=True, tokenize="13a")
    scorer.corpus_score(PREDICTIONS, [REFERENCES])
    assert signature["bleu"] == str(scorer.get_signature())
    assert f"version:{signature['sacrebleu']}" in signature["bleu"]
    assert signature["examples"] == "4"
    assert all(isinstance(value, str) and value for value in signature.values())
