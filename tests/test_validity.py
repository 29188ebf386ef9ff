"""Agreement of metrics with ratings: known correlations, files of ratings, and the published ones."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from attune.report.tables import VARIANT_COLUMNS
from attune.report.tables import table as metrics_table
from attune.report.validity import correlations, explanation, read_validity, table
from attune.runtime.errors import DataError, UserError
from attune.scoring.validity import ceiling, ordered_pairs, pairwise_agreement, sentence_bleu, spearman
from attune.tools import validity
from attune.tools.rated import read
from attune.tools.validity import main

ROOT = Path(__file__).parents[1]
CORPORA = Path(os.environ.get("CORPORA_DIR") or ROOT.parent / "shared/data")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(header, rows, path="ratings.csv"):
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return Path(path)


def measured(capsys, path, *options, seed=13):
    """The numbers that the command writes, and what it prints."""
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed = params.replace("seed: 13\n", f"seed: {seed}\n", 1).replace("threads: 2\n", "threads: 1\n")
    Path("params.yaml").write_text(changed, encoding="utf-8")
    main([str(path), "-o", "out.json", *options])
    return json.loads(Path("out.json").read_text(encoding="utf-8")), capsys.readouterr().out


def rho(numbers, metric, scale="rating"):
    return numbers["metrics"][metric]["rho"][scale]["value"]


# Five words of a reference, of which a reply has ever more: every overlap metric orders them as the ratings do.
REFERENCE = "i am so sorry friend"
REPLIES = [
    "you he we it they",
    "i he we it they",
    "i am we it they",
    "i am so it they",
    "i am so sorry they",
    "i am so sorry friend yes",
]
HEADER = ["context", "reply", "reference", "rating"]


def test_known_correlation(capsys):
    path = write(HEADER, [["My dog died.", r, REFERENCE, i] for i, r in enumerate(REPLIES)])
    numbers, text = measured(capsys, path)
    for metric in ("rouge_1", "rouge_l", "bleu_1"):
        assert numbers["metrics"][metric]["rho"]["rating"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    # All replies are to one dialogue: 15 pairs, and every resample is that dialogue.
    assert numbers["metrics"]["rouge_1"]["pairwise"] == {"value": 100.0, "low": 100.0, "high": 100.0, "n": 15}
    assert rho(numbers, "bertscore_f1") > 0.8
    # Every reply has only distinct words: nothing is ordered.
    assert rho(numbers, "dist_1_per_reply") is None
    assert numbers["metrics"]["dist_1_per_reply"]["pairwise"]["value"] is None
    assert "level_er" not in numbers["metrics"] and "no metrics of epitome, whose classifier is not trained" in text
    assert "bertscore_encoder_sha256" in numbers["signature"] and len(numbers["ratings"]["sha256"]) == 64


def test_levels_lead_and_a_lower_difference_agrees(capsys):
    from helpers import random_classifiers

    random_classifiers(Path("models/epitome"))
    path = write(HEADER, [[f"Context {i % 3}.", r, REFERENCE, i] for i, r in enumerate(REPLIES)])
    numbers, text = measured(capsys, path)
    names = list(numbers["metrics"])
    assert names[:6] == ["level_er", "level_ex", "level_ip", "diff_er", "diff_ex", "diff_ip"]
    assert not any("reference" in name for name in names)
    assert numbers["signature"]["epitome_classifiers"] == "random" and "| diff_er \u2193" in text


def test_an_empty_reference_is_none_and_n_is_of_each_metric(capsys):
    rows = [[f"Dialogue {i}.", reply, REFERENCE if i < 4 else " ", i] for i, reply in enumerate(REPLIES)]
    numbers, _ = measured(capsys, write(HEADER, rows), "--no-models")
    counts = {name: metric["n"] for name, metric in numbers["metrics"].items()}
    assert counts["rouge_1"] == counts["bleu_4"] == 4 and counts["reply_words"] == counts["dist_1_per_reply"] == 6
    assert rho(numbers, "rouge_1") == 1.0
    assert [row.own.reference for row in read(Path("ratings.csv"))] == [REFERENCE] * 4 + [None] * 2


def test_a_reply_that_is_the_reference_is_told_apart(capsys):
    rows = [[f"Dialogue {i}.", reply, REFERENCE, i] for i, reply in enumerate(REPLIES)]
    numbers, text = measured(
        capsys, write(HEADER, [*rows, ["Dialogue 0.", "I am so sorry, friend!", REFERENCE, 0]]), "--no-models"
    )
    assert numbers["human_replies"] == {"replies": 1, "rating": 0.0} and numbers["ratings"]["replies"] == 6
    # With it, a perfect overlap would stand beside the lowest rating.
    assert rho(numbers, "rouge_1") == 1.0
    assert "Apart, and in no row above: 1 rated replies that are the reference itself" in text


def test_several_raters_in_columns(capsys):
    ratings = [(1, 1, 1), (2, "", 3), ("", 3, ""), (5, 4, 3), (4.5, 5, " "), (6, 6, 6)]
    header = ["rating_1", "context", "rating_2", "reply", "rating_10"]
    path = write(header, [[a, f"c {n}", b, "word " * n, c] for n, (a, b, c) in enumerate(ratings)])
    assert [row.rating("rating") for row in read(path)] == [1, 2.5, 3, 4, 4.75, 6]
    numbers, text = measured(capsys, path, "--no-models")
    assert rho(numbers, "reply_words") == 1.0 and numbers["ratings"]["ratings"] == 14
    # Thirteen ratings stand beside others of the same reply.
    assert numbers["ceiling"]["rating"]["n"] == 13
    assert "rouge_l" not in numbers["metrics"] and "add a column reference" in text


def long(rows):
    return write(["context", "system", "rater", "reply", "empathetic", "natural"], rows)


def test_raters_and_scales_in_rows(capsys):
    rows = [
        [f"c {dialogue}", system, rater, "word " * words, 10 * words + rater, 90 - 10 * words]
        for dialogue in range(3)
        for system, words in (("a", 1 + dialogue), ("b", 5 + dialogue))
        for rater in (1, 2, 3)
    ]
    numbers, _ = measured(capsys, long(rows), "--no-models")
    assert numbers["ratings"] | {"sha256": 0} == {
        "source": "ratings.csv", "replies": 6, "dialogues": 3, "ratings": 18, "sha256": 0,
    }  # fmt: skip
    assert [rho(numbers, "reply_words", scale) for scale in ("empathetic", "natural")] == [1.0, -1.0]
    # Each reply's mean over the raters is 10 w + 2 and 90 - 10 w: their mean is 46 for all.
    assert rho(numbers, "reply_words", "mean") is None
    assert list(numbers["systems"]) == ["a", "b"] or list(numbers["systems"]) == ["b", "a"]
    assert numbers["ceiling"]["natural"]["value"] == 1.0 and numbers["ceiling"]["natural"]["n"] == 18
    with pytest.raises(DataError, match=r"^ratings\.csv:3: rater '1' rated this reply in line 2, too$"):
        read(long([rows[0], rows[0], *rows]))


def test_systems_and_pairs_by_hand(capsys):
    # Words order a < b < c, people a < c < b: two of three pairs of systems and of replies.
    rows = [
        [f"c {i}", name, "word " * words, rating + i]
        for i in range(4)
        for name, words, rating in (("a", 1, 10), ("b", 2, 30), ("c", 3, 20))
    ]
    numbers, _ = measured(capsys, write(["context", "system", "reply", "rating"], rows), "--no-models")
    found = numbers["metrics"]["reply_words"]
    assert found["systems_agree"] == "2 of 3" and found["pairwise"]["n"] == 12
    assert found["pairwise"]["value"] == pytest.approx(200 / 3, abs=1e-3)
    assert list(numbers["systems"]) == ["b", "c", "a"]


def test_seed_determines_the_output(capsys):
    path = write(["context", "reply", "rating"], [[f"c {i}", "word " * (i % 7), i % 5] for i in range(40)])
    first = measured(capsys, path, "--no-models")
    assert measured(capsys, path, "--no-models") == first
    assert measured(capsys, path, "--no-models", seed=1) != first


def test_correlation_equals_scipy_and_interval_fisher():
    from scipy.stats import spearmanr

    random = np.random.default_rng(5)
    scores = random.integers(0, 6, 80).astype(float)
    ratings = scores + random.normal(0, 3, 80)
    found = spearman(scores, ratings, 1000, seed=1)
    assert found.value == pytest.approx(spearmanr(scores, ratings).statistic)
    assert -1 < found.low < found.value < found.high < 1
    # Fisher's z: about \u00b1 1.96 \u00b7 1.03 / \u221a77 around atanh(rho).
    low, high = np.tanh(np.arctanh(found.value) + np.array([-1, 1]) * 1.96 * 1.03 / np.sqrt(77))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.06))


def test_a_weighted_resample_is_the_repeated_sample():
    """Ranks under weights are those of the values repeated that often, ties included."""
    from scipy.stats import spearmanr

    from attune.scoring.intervals.bootstrap import resample_weights

    random = np.random.default_rng(2)
    scores, ratings = random.integers(0, 4, (2, 30)).astype(float)
    dialogues = [str(i // 3) for i in range(30)]
    drawn = np.concatenate(list(resample_weights(30, 200, 9, dialogues))).astype(int)
    repeated = [spearmanr(np.repeat(scores, row), np.repeat(ratings, row)).statistic for row in drawn]
    found = spearman(scores, ratings, 200, 9, dialogues)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(repeated, [2.5, 97.5])))


def test_resamples_keep_pairs():
    """With independent resamples of scores and ratings, the interval of a perfect correlation would reach 0."""
    values = np.arange(30.0)
    assert spearman(values, values**3, 500, seed=1) == pytest.approx((1, 1, 1))


def test_constant_scores():
    assert all(np.isnan(spearman(np.ones(5), np.arange(5.0), 100, seed=1)))


@pytest.mark.parametrize(("scores", "ratings"), [(np.ones(2), np.ones(2)), (np.ones(4), np.ones(3))])
def test_invalid_sizes(scores, ratings):
    with pytest.raises(ValueError, match="expected as many, at least three"):
        spearman(scores, ratings, 100, seed=1)


def test_pairs_are_of_one_dialogue_and_rated_differently():
    assert ordered_pairs([3, 1, 2, 2], ["a", "a", "b", "b"]) == [(0, 1)]
    assert ordered_pairs([1, 3], ["a", "a"]) == [(1, 0)]
    # Equal scores count half.
    assert pairwise_agreement(np.ones(2), np.array([1.0, 2.0]), ["a", "a"], 10, 1)[0].value == 50
    nothing, pairs = pairwise_agreement(np.ones(2), np.ones(2), ["a", "a"], 10, 1)
    assert np.isnan(nothing.value) and pairs == 0


def test_the_ceiling_is_one_rater_beside_the_others():
    """Raters who agree reach 1; where the second says the opposite of the first, each stands against the other."""
    same = [[float(i)] * 3 for i in range(10)]
    assert ceiling(same, 50, 1, [str(i) for i in range(10)])[0].value == pytest.approx(1)
    opposite = [[float(i), 9.0 - i] for i in range(10)]
    found, n = ceiling([*opposite, [4.0]], 50, 1, [str(i) for i in range(11)])
    assert found.value == pytest.approx(-1) and n == 20


def test_sentence_bleu_is_the_row_form_of_corpus_bleu():
    from attune.scoring.text.overlap import bleu

    reply, reference = "i am so sorry to hear that", "i am so sorry for you"
    for order in (1, 2, 3, 4):
        assert sentence_bleu(reply, reference, order) == pytest.approx(bleu([reply], [reference])[f"bleu_{order}"])
    # With the effective order, two words can match fully.
    assert sentence_bleu("thank you", "thank you", 4) == pytest.approx(100) and sentence_bleu("", "a", 1) == 0


GOOD = [["c", "r", "1"], ["c", "r", "2"], ["c", "r", "3"]]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["context", "rating"], [], r"^ratings\.csv:1: no column reply; "),
        (["reply", "rating"], [], r"^ratings\.csv:1: no column context; "),
        (["context", "reply", "ratings"], GOOD, r"^ratings\.csv:1: no column of a rating: rating, appropriate"),
        (
            ["context", "reply", "rating"],
            [*GOOD[:1], ["c", "r", "good"]],
            r"^ratings\.csv:3: rating = 'good' is not a n",
        ),
        (["context", "reply", "rating"], [*GOOD[:2], ["c", "r", "nan"]], r"^ratings\.csv:4: rating = 'nan' is not a n"),
        (["context", "reply", "rating"], [["c", "r", " "], *GOOD], r"^ratings\.csv:2: no rating$"),
        (["context", "reply", "rating"], [["c", "r"]], r"^ratings\.csv:2: 2 fields, but the header has 3"),
        (["context", "reply", "rating"], [[" ", "r", "1"], *GOOD], r"^ratings\.csv:2: message 1 of context: the te"),
        # The line where the row begins, before a text of two lines.
        (["context", "reply", "rating"], [["a\nb", "r", "x"], *GOOD], r"^ratings\.csv:2: rating = 'x'"),
        (
            ["context", "reply", "rating"],
            GOOD[:2],
            r"^ratings\.csv: 2 rated replies: a correlation needs at least three$",
        ),
    ],
)
def test_invalid_file(header, rows, message):
    with pytest.raises(DataError, match=message):
        read(write(header, rows))


def test_missing_file_and_encoding():
    with pytest.raises(DataError, match=r"^ratings\.csv is missing: the first"):
        read(Path("ratings.csv"))
    Path("ratings.csv").write_bytes(b"context,reply,rating\nc,caf\xe9,1\n")
    with pytest.raises(DataError, match=r"^ratings\.csv:2: .*save it as UTF-8"):
        read(Path("ratings.csv"))


def test_byte_order_mark():
    Path("ratings.csv").write_bytes("\ufeffcontext,reply,rating\nc,r,1\nc,r,2\nc,r,3\n".encode())
    assert [row.rating("rating") for row in read(Path("ratings.csv"))] == [1, 2, 3]


# The pages


SIGNATURE = {"bertscore_layer": "5", "epitome_classifiers": "trained on epitome"}


def written(tmp_path, capsys):
    """The numbers of a small file of ratings, as they would be in metrics/validity.json."""
    path = write(HEADER, [[f"Dialogue {i}.", r, REFERENCE, i] for i, r in enumerate(REPLIES)])
    numbers, _ = measured(capsys, path, "--no-models")
    Path("metrics").mkdir()
    Path("metrics/validity.json").write_text(json.dumps(numbers), encoding="utf-8")
    return numbers


def test_a_heading_shows_the_agreement_and_the_legend_what_differs(tmp_path, capsys):
    assert read_validity() == {} and correlations({}, SIGNATURE) == {} and explanation({}, SIGNATURE) == ""
    written(tmp_path, capsys)
    numbers = read_validity()
    rows = {"base": {"rouge_l": 1.0}}
    headings = metrics_table("", rows, VARIANT_COLUMNS, None, correlations(numbers, SIGNATURE)).splitlines()[0]
    assert "ROUGE-L \u2191 (rho +1.00)" in headings and "MMLU \u2191 |" in headings
    told = explanation(numbers, SIGNATURE)
    assert "\u00b0: measured with others than this run's (bertscore_layer, epitome_classifiers)." in told
    assert (
        correlations(numbers | {"metrics": {"level_er": numbers["metrics"]["rouge_l"]}}, SIGNATURE)["level_er"][-1]
        == "\u00b0"
    )
    assert "others than" not in explanation(dict(numbers) | {"signature": SIGNATURE}, SIGNATURE)


def test_the_page_keeps_what_is_around_the_table():
    page = f"before\n{validity.BEGIN}\nold\n{validity.END}\nafter\n"
    new = validity.into_page("table", page)
    assert new == f"before\n{validity.BEGIN}\n\ntable\n\n{validity.END}\nafter\n"
    assert validity.into_page("table", new) == new
    with pytest.raises(UserError, match="has no lines"):
        validity.into_page("table", "before")


def test_the_committed_numbers_are_those_of_the_page():
    committed = read_validity(ROOT / "metrics/validity.json")
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert validity.into_page(table(committed) if committed else "", page) == page


def test_without_the_corpus_the_error_says_what_to_do(monkeypatch):
    shutil.copytree(ROOT / "docs", "docs")
    shutil.copy(ROOT / "params.yaml", ".")
    Path("data").mkdir()
    shutil.copy(ROOT / "data/sources.yaml", "data")
    monkeypatch.delenv("CORPORA_DIR", raising=False)
    with pytest.raises(UserError, match=r"put ratings\.csv into <folder>/empo_human and set CORPORA_DIR"):
        main([])


@pytest.mark.corpora
@pytest.mark.skipif(not (CORPORA / "empo_human").is_dir(), reason="no empo_human: set CORPORA_DIR")
def test_the_published_ratings():
    """Their counts, and that people rate their own replies lowest: only the others are correlated."""
    rows = read(CORPORA / "empo_human/ratings.csv")
    assert len(rows) == 675 and sum(row.human for row in rows) == 135
    assert {len(row.by_rater("mean")) for row in rows} == {3} and len({row.dialogue for row in rows}) == 135
    means = {
        name: np.mean([row.rating("mean") for row in rows if row.system == name])
        for name in ("people", "base", "base-30", "sft", "sft-dpo")
    }
    assert max(means, key=means.get) == "base" and min(means, key=means.get) == "people"
