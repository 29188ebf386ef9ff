"""Rank correlation of metrics with ratings: known correlations, and files of ratings."""

import csv
from pathlib import Path

import numpy as np
import pytest

from attune.runtime.errors import DataError
from attune.scoring.validity import spearman
from attune.tools.validity import main, read

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(header, rows, path="ratings.csv"):
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return Path(path)


def printed(capsys, path, seed=13):
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed = params.replace("seed: 13\n", f"seed: {seed}\n").replace("threads: 2\n", "threads: 1\n")
    Path("params.yaml").write_text(changed, encoding="utf-8")
    main([str(path)])
    text = capsys.readouterr().out
    lines = [[cell.strip().replace("\\", "") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in lines[2:] if len(cells) == 5}, text


# Five words of a reference, of which a reply has ever more: every overlap metric orders them as the ratings do.
REFERENCE = "i am so sorry friend"
REPLIES = [
    "you he we it they",
    "i he we it they",
    "i am we it they",
    "i am so it they",
    "i am so sorry they",
    REFERENCE,
]


def test_known_correlation(capsys):
    path = write(
        ["context", "reply", "reference", "rating"], [["My dog died.", r, REFERENCE, i] for i, r in enumerate(REPLIES)]
    )
    found, text = printed(capsys, path)
    assert found["rouge_1"] == found["rouge_l"] == ["1.000", "1.000", "1.000", "6"]
    # Every reply has five distinct words.
    assert found["reply_words"] == found["dist_1_per_reply"] == ["\u2013", "\u2013", "\u2013", "6"]
    assert float(found["bertscore_f1"][0]) > 0.8
    assert "level_er" not in found and "models/epitome is missing" in text


def test_negative_correlation(capsys):
    path = write(
        ["context", "reply", "reference", "rating"], [["My dog died.", r, REFERENCE, -i] for i, r in enumerate(REPLIES)]
    )
    assert printed(capsys, path)[0]["rouge_1"] == ["-1.000", "-1.000", "-1.000", "6"]


def test_several_raters(capsys):
    ratings = [(1, 1, 1), (2, "", 3), ("", 3, ""), (5, 4, 3), (4.5, 5, " "), (6, 6, 6)]
    header = ["rating_1", "context", "rating_2", "reply", "rating_10"]
    path = write(header, [[a, "c", b, "word " * n, c] for n, (a, b, c) in enumerate(ratings)])
    assert [row.rating for row in read(path)] == [1, 2.5, 3, 4, 4.75, 6]
    found, text = printed(capsys, path)
    assert found["reply_words"][0] == "1.000"
    assert "rouge_l" not in found and "bertscore_f1" not in found
    assert "The file has no references: ROUGE, BERTScore and diff are left out." in text


def test_seed_determines_the_output(capsys):
    rows = [["c", "word " * (i % 7), i % 5] for i in range(40)]
    path = write(["context", "reply", "rating"], rows)
    first = printed(capsys, path)
    assert printed(capsys, path) == first
    assert printed(capsys, path, seed=1) != first


def test_correlation_equals_scipy_and_interval_fisher():
    from scipy.stats import spearmanr

    random = np.random.default_rng(5)
    scores = random.integers(0, 6, 80).astype(float)
    ratings = scores + random.normal(0, 3, 80)
    found = spearman(scores, ratings, 1000, seed=1)
    assert found.rho == pytest.approx(spearmanr(scores, ratings).statistic)
    assert -1 < found.low < found.rho < found.high < 1
    # Fisher's z: about ± 1.96 · 1.03 / √77 around atanh(rho).
    low, high = np.tanh(np.arctanh(found.rho) + np.array([-1, 1]) * 1.96 * 1.03 / np.sqrt(77))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.06))


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


GOOD = [["c", "r", "1"], ["c", "r", "2"], ["c", "r", "3"]]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["context", "rating"], [], r"^ratings\.csv:1: no column reply; "),
        (["reply", "rating"], [], r"^ratings\.csv:1: no column context; "),
        (["context", "reply", "ratings"], [], r"^ratings\.csv:1: column rating is missing"),
        (
            ["context", "reply", "rating"],
            [*GOOD[:1], ["c", "r", "good"]],
            r"^ratings\.csv:3: rating = 'good' is not a n",
        ),
        (["context", "reply", "rating"], [*GOOD[:2], ["c", "r", "nan"]], r"^ratings\.csv:4: rating = 'nan' is not a n"),
        (["context", "reply", "rating"], [["c", "r", " "]], r"^ratings\.csv:2: no rating$"),
        (["context", "reply", "rating"], [["c", "r"]], r"^ratings\.csv:2: 2 cells, but the header has 3$"),
        # The line where the row begins, before a text of two lines.
        (["context", "reply", "rating"], [["a\nb", "r", "x"]], r"^ratings\.csv:2: rating = 'x'"),
        (["context", "reply", "rating"], GOOD[:2], r"^ratings\.csv: 2 rows: a correlation needs at least three$"),
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
    assert [row.rating for row in read(Path("ratings.csv"))] == [1, 2, 3]


def test_a_reply_without_reference_is_left_out_of_the_metrics_of_the_reference(capsys):
    """And counted: they are those of a file without its row."""
    header = ["context", "reply", "reference", "rating"]
    rows = [["My dog died.", reply, REFERENCE, i] for i, reply in enumerate(REPLIES)]
    found, _ = printed(capsys, write(header, [*rows, ["c", "i am so sorry friend", " ", 0]]))
    without, _ = printed(capsys, write(header, rows))
    assert found["reply_words"][-1] == "7"
    for metric in ("rouge_1", "rouge_l", "bertscore_f1"):
        assert found[metric] == without[metric] and found[metric][-1] == "6"
    two, _ = printed(capsys, write(header, [*rows[:2], *([*row[:2], "", row[3]] for row in rows[2:])]))
    assert two["rouge_l"] == ["\u2013", "\u2013", "\u2013", "2"]
