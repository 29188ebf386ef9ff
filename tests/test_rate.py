"""Blind comparisons: items, answers, access, win rates; on a running server and in a browser."""

import csv
import json
import socket
import sqlite3
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from itertools import product
from math import comb
from pathlib import Path

import pytest
import uvicorn
from helpers import ROOT, open_browser

from attune.config.params import load
from attune.report.ratings import COMMON, Answer, Store, as_csv, current, drawn, first, items, order, read_csv
from attune.report.win_rates import alpha, compared, section, summary
from attune.runtime.errors import DataError, UserError
from attune.scoring.intervals.wilson import wilson
from attune.tools.rate import app, export, read, share

NAMES = ("sft", "sft-dpo")
HOSTILE = "<img src=x onerror=\"document.title = 'taken'\">"


def replies(words, count=12):
    return [
        {"id": f"test/{i}", "context": [{"role": "user", "text": f"context {i}"}], "reply": f"{words} {i}"}
        for i in range(count)
    ]


PLAIN, WARM = replies("plain"), [*replies("warm")[:10], replies("plain")[10], {**replies("x")[11], "reply": HOSTILE}]
ITEMS = items(PLAIN, WARM)


def an_answer(rater="ann", example=0, choice="b", **changes):
    item = next(item for item in ITEMS if item.example == f"test/{example}")
    return replace(Answer(rater, item.example, *NAMES, choice, "", "a", item.replies, "2024-01-31"), **changes)


@contextmanager
def serving(pairs, folder):
    """The page on a local port: (port, store of the answers)."""
    store = Store(folder / "answers.sqlite")
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    served = uvicorn.Server(uvicorn.Config(app(pairs, NAMES, store, 13, [f"127.0.0.1:{port}"]), log_level="error"))
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listening]})
    thread.start()
    yield port, store
    served.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def server(tmp_path):
    with serving(ITEMS, tmp_path) as served:
        yield served


def ask(port, method, path, body=None, **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    content = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, None if body is None else json.dumps(body), content | named)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text) if text.startswith("{") else text


def test_equal_replies_are_left_out():
    assert [item.example for item in ITEMS] == [f"test/{i}" for i in (*range(10), 11)]


def test_orders():
    many = items(replies("plain", 400), replies("warm", 400))
    orders = [[item.example for item in order(many, rater, 13)] for rater in ("ann", "ben", "ann")]
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    begun = Counter(first(item, "ann", 13) for item in many)
    assert 160 < begun["a"] < 240
    assert [first(item, "ann", 13) for item in many] != [first(item, "ben", 13) for item in many]


def test_all_raters_begin_with_the_same_contexts():
    """Fifty who stop after twenty of 400 have all answered the same ones; --limit is a part of the same draw."""
    many = drawn(items(replies("plain", 400), replies("warm", 400)), 13)
    blocks = [[item.example for item in order(many, f"rater {i}", 13)][:COMMON] for i in range(50)]
    assert {frozenset(block) for block in blocks} == {frozenset(item.example for item in many[:COMMON])}
    assert len({tuple(block) for block in blocks}) == 50
    assert drawn(many, 13, limit=30) == many[:30] and drawn(many[::-1], 13) == many != drawn(many, 14)


def test_an_answer_that_is_taken_back_is_asked_again(server):
    port, store = server
    item = ask(port, "GET", "/next?rater=ann")[1]["item"]
    body = {"rater": "ann", "example": item["example"], "hash": item["hash"], "better": "first"}
    for rater in ("ann", "ben"):
        assert ask(port, "POST", "/answer", body | {"rater": rater})[0] == 200
    assert ask(port, "GET", "/next?rater=ann")[1]["item"]["example"] != item["example"]
    assert ask(port, "POST", "/undo", body) == (200, {"undone": item["example"]})
    assert ask(port, "GET", "/next?rater=ann")[1] == {"done": 0, "all": len(ITEMS), "item": item}
    assert [answer.rater for answer in store.answers()] == ["ben"]
    # There is none any more, and none of an example that is not rated.
    assert ask(port, "POST", "/undo", body) == (200, {"undone": None})
    assert ask(port, "POST", "/undo", body | {"example": "test/99"})[0] == 400
    assert ask(port, "POST", "/undo", body, Content_Type="text/plain")[0] == 400


def test_rater_answers_everything_once(server):
    port, store = server
    seen = []
    for _ in range(len(ITEMS)):
        state = ask(port, "GET", "/next?rater=ann")[1]
        item = state["item"]
        assert state["done"] == len(seen) and not set(NAMES) & set(json.dumps(state).split('"'))
        body = {"rater": "ann", "example": item["example"], "hash": item["hash"], "better": "first", "reason": " so "}
        assert ask(port, "POST", "/answer", body) == (200, {"kept": item["example"]})
        seen.append((item["example"], item["replies"][0]))
    assert ask(port, "GET", "/next?rater=ann")[1] == {"done": len(ITEMS), "all": len(ITEMS)}
    assert [name for name, _ in seen] == [item.example for item in order(ITEMS, "ann", 13)]
    by_example = {item.example: item for item in ITEMS}
    kept = {answer.example: answer for answer in Store(store.path).answers()}
    for name, better in seen:
        chosen = {"a": by_example[name].reply_a, "b": by_example[name].reply_b}[kept[name].choice]
        assert (chosen, kept[name].reason) == (better, "so")
    assert {answer.choice for answer in kept.values()} == {"a", "b"}
    assert ask(port, "GET", "/next?rater=ben")[1]["done"] == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"rater": "", "example": "test/0", "hash": "", "better": "tie"}, "a rater's name has 1 to 80 characters"),
        ({"rater": "ann", "example": "test/99", "hash": "", "better": "tie"}, "not an answer of this page"),
        ({"rater": "ann", "example": "test/0", "hash": "old", "better": "tie"}, "the replies have changed"),
        ({"rater": "ann", "example": "test/0", "hash": ITEMS[0].replies, "better": "b"}, "not an answer of"),
        ({"rater": "ann", "example": "test/0", "hash": ITEMS[0].replies, "better": "tie", "reason": "x" * 2001},
         "a reason has at most 2000"),
        ([], "not an answer of this page"),
    ],
)  # fmt: skip
def test_invalid_answer_is_refused(server, body, message):
    port, store = server
    status, found = ask(port, "POST", "/answer", body)
    assert status == 400 and message in found["error"]
    assert store.answers() == []


def test_other_hosts_and_origins_are_refused(server):
    port, store = server
    body = {"rater": "ann", "example": "test/0", "hash": ITEMS[0].replies, "better": "tie"}
    assert ask(port, "GET", "/", Host="evil.example")[0] == 403
    assert ask(port, "POST", "/answer", body, Origin="http://evil.example")[0] == 403
    assert ask(port, "POST", "/answer", body, Content_Type="text/plain")[0] == 400
    assert store.answers() == []
    assert ask(port, "POST", "/answer", body, Origin=f"http://127.0.0.1:{port}")[0] == 200


def test_concurrent_raters(server):
    port, store = server

    def rate(rater):
        for item in ITEMS:
            body = {"rater": rater, "example": item.example, "hash": item.replies, "better": "tie"}
            assert ask(port, "POST", "/answer", body)[0] == 200

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(rate, [f"rater {i}" for i in range(10)]))
    assert Counter(answer.rater for answer in store.answers()) == {f"rater {i}": len(ITEMS) for i in range(10)}


def test_second_answer_replaces_the_first(tmp_path):
    store = Store(tmp_path / "answers.sqlite")
    for answer in (an_answer(choice="a"), an_answer(choice="b"), an_answer(example=1, replies="gone")):
        store.keep(answer)
    assert len(store.answers()) == 2
    assert current(store.answers(), ITEMS, NAMES) == [an_answer(choice="b")]
    assert current(store.answers(), ITEMS, NAMES[::-1]) == []
    with pytest.raises(DataError, match="choice 'c' is none of a, b, tie"):
        store.keep(an_answer(choice="c"))


def test_invalid_database(tmp_path):
    (tmp_path / "answers.sqlite").write_text("no database, but long enough to be read as the header of one" * 9)
    with pytest.raises(DataError, match=r"answers\.sqlite cannot be read or written \(file is not a database\)"):
        Store(tmp_path / "answers.sqlite")


def test_answer_is_on_disk(tmp_path):
    store = Store(tmp_path / "answers.sqlite")
    store.keep(an_answer())
    with sqlite3.connect(f"file:{store.path}?mode=ro", uri=True) as base:
        assert base.execute("SELECT count(*) FROM answers").fetchone() == (1,)


def test_win_rate():
    answers = [an_answer(example=i, choice="b") for i in range(6)] + [an_answer(example=i, choice="a") for i in (6, 7)]
    answers += [an_answer(example=i, choice="tie") for i in (8, 9)]
    found = summary(answers, "last")
    counted = {"answers": 10, "dialogues": 10, "raters": 1, "wins_a": 2, "ties": 2, "wins_b": 6, "win_rate": 70}
    assert {key: found[key] for key in counted} == counted and "agreement" not in found
    # Brown, Cai and DasGupta 2001, equation 4, of 7 successes in 10.
    assert (found["win_rate.low"], found["win_rate.high"]) == pytest.approx((39.68, 89.22), abs=0.01)
    with pytest.raises(DataError, match="no answers yet"):
        summary([], "last")


@pytest.mark.parametrize("choice", ["a", "b"])
def test_interval_of_equal_answers(choice):
    """For n equal draws Wilson's interval ends at n / (n + z^2)."""
    found = summary([an_answer(example=i, choice=choice) for i in range(5)], "last")
    low = 100 * 5 / (5 + 1.959964**2)
    ends = {"b": (low, 100), "a": (0, 100 - low)}[choice]
    assert (found["win_rate.low"], found["win_rate.high"]) == pytest.approx(ends)


def test_answers_to_a_dialogue_count_as_one_draw():
    once = [an_answer(example=i, choice="ab"[i % 2]) for i in range(6)]
    often = [replace(answer, rater=f"{i}") for answer in once for i in range(20)]
    ends = ("win_rate", "win_rate.low", "win_rate.high")
    assert [summary(often, "last")[end] for end in ends] == pytest.approx([summary(once, "last")[end] for end in ends])
    # Several turns of the same dialogue, too.
    turns = [replace(answer, example=f"{answer.example}:{turn}") for answer in once for turn in (1, 3, 5)]
    assert summary(turns, "every")["dialogues"] == 6
    assert summary(turns, "every")["win_rate.low"] == pytest.approx(summary(once, "last")["win_rate.low"])


@pytest.mark.parametrize("count", [20, 40, 100])
@pytest.mark.parametrize("share", [0.5, 0.6, 0.8])
def test_coverage_of_the_interval(count, share):
    """The exact probability, over all numbers of wins."""
    held = [low <= share <= high for low, high in (wilson(wins / count, count) for wins in range(count + 1))]
    chances = [comb(count, wins) * share**wins * (1 - share) ** (count - wins) for wins in range(count + 1)]
    assert 0.92 < sum(chance for chance, inside in zip(chances, held, strict=True) if inside) < 0.98


def test_alpha():
    """1 - observed over expected disagreement, of two raters without gaps."""
    ben, ann = "abbbbbbbbb", "bbbabbabbb"
    units = [("ben", ben), ("ann", ann)]
    coded = [an_answer(rater=who, example=i, choice=c) for who, codes in units for i, c in enumerate(codes)]
    # By hand: of 20 values 3 are a; 3 examples disagree, so 6 of 20 pairs; by chance 2 * 3 * 17 of 20 * 19 would.
    assert alpha(coded) == pytest.approx(1 - (6 / 20) / (2 * 3 * 17 / (20 * 19)))
    assert summary(coded, "last")["agreement"] == alpha(coded)
    assert alpha([answer for answer in coded if answer.rater == "ben"]) is None


def test_export(tmp_path, capsys):
    answers = [an_answer(example=i, choice="b") for i in range(8)] + [an_answer(rater="ben", choice="b")]
    export(answers, tmp_path / "out.csv", load(ROOT / "params.yaml"))
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["choice"] for row in csv.DictReader(file)] == ["b"] * 9
    text = capsys.readouterr().out
    assert "sft-dpo is better than sft in 100.0 % (65.7 to 100.0) of 9 answers" in text
    assert text.endswith("; no agreement can be computed from 1 contexts that several raters answered\n")
    apart = [*answers, an_answer(rater="ben", example=1, choice="a"), an_answer(rater="eve", example=9)]
    export(apart, tmp_path / "out.csv", load(ROOT / "params.yaml"))
    assert "over n = 2 contexts that several raters answered" in capsys.readouterr().out
    assert as_csv(answers).count("\n") == 10


def test_shared_answers(server, tmp_path, monkeypatch):
    """Two raters on the page, and a third on another machine with the variants exchanged."""
    port, store = server
    for (rater, better), item in product({"ann": "second", "ben": "tie"}.items(), ITEMS):
        body = {"rater": rater, "example": item.example, "hash": item.replies, "better": better, "reason": "private"}
        assert ask(port, "POST", "/answer", body)[0] == 200
    monkeypatch.chdir(tmp_path)
    share(current(store.answers(), ITEMS, NAMES))
    other = items(WARM, PLAIN)
    share([Answer("eve", item.example, *NAMES[::-1], "a", "", "a", item.replies, "2024-01-31") for item in other])
    # Sharing the same answers again adds nothing.
    share(current(store.answers(), ITEMS, NAMES))
    text = Path("data/ratings.csv").read_text()
    assert text.count("\n") == 1 + 3 * len(ITEMS)
    assert not any(word in text for word in ("private", "ann", "ben", "eve"))
    found = compared(read_csv(Path("data/ratings.csv")), {"sft": PLAIN, "sft-dpo": WARM}, "last")
    seconds = Counter("ab"[first(item, "ann", 13) == "a"] for item in ITEMS)
    pair = found["sft", "sft-dpo"]
    assert found.keys() == {NAMES} and (pair["raters"], pair["dialogues"], pair["ties"]) == (3, len(ITEMS), len(ITEMS))
    assert (pair["wins_a"], pair["wins_b"]) == (seconds["a"], seconds["b"] + len(ITEMS))
    head, _, line = section(found).split("\n\n")[1].splitlines()
    cells = dict(zip(*([cell.strip() for cell in row.strip("|").split("|")] for row in (head, line)), strict=True))
    assert (cells["A, B"], cells["answers"], cells["A wins"], cells["ties"]) == (
        "sft, sft-dpo", "33", f"{seconds['a']}", "11",
    )  # fmt: skip
    rate, low, high = (f"{pair[name]:.1f}" for name in ("win_rate", "win_rate.low", "win_rate.high"))
    assert cells["win rate of B %"] == f"{rate} ({low} to {high})"
    assert cells["alpha"] == f"{pair['agreement']:.2f}"
    # Answers to earlier replies do not count.
    assert compared(read_csv(Path("data/ratings.csv")), {"sft": replies("new"), "sft-dpo": WARM}, "last") == {}
    assert section({}) == ""


def test_the_project_has_no_ratings():
    assert read_csv(ROOT / "data/ratings.csv") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("choice", "what"), r"ratings\.csv: the columns are .*what.*, not rater, example"),
        ((",b,", ",c,"), r"ratings\.csv: line 2: choice: input should be 'a', 'b' or 'tie'"),
        (("ann,", ""), r"ratings\.csv: line 2: "),
        (("2024-01-31", "2024-01-31,more"), r"ratings\.csv: line 2: "),
    ],
)
def test_invalid_line_is_named(tmp_path, changes, message):
    (tmp_path / "ratings.csv").write_text(as_csv([an_answer()]).replace(*changes))
    with pytest.raises(DataError, match=message):
        read_csv(tmp_path / "ratings.csv")


def test_unknown_variant_and_missing_replies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = load(ROOT / "params.yaml")
    with pytest.raises(UserError, match="'dbo' is none of variants: base, sft, sft-dpo"):
        read(("sft", "dbo"), params)
    with pytest.raises(UserError, match=r"sft\.parquet is missing: run `dvc repro generate@sft`"):
        read(NAMES, params)


def test_browser(server):
    port, store = server
    with open_browser() as browser:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("#rater", "ann")
        page.keyboard.press("Enter")
        for i, item in enumerate(order(ITEMS, "ann", 13)):
            page.get_by_text(f"{i} of {len(ITEMS)}", exact=True).wait_for()
            sides = [item.reply_a, item.reply_b]
            expected = sides if first(item, "ann", 13) == "a" else sides[::-1]
            assert [page.locator(place).inner_text() for place in ("#first", "#second")] == expected
            if i == 0:
                # Taken back once, and answered otherwise.
                page.keyboard.press("1")
                page.get_by_text(f"1 of {len(ITEMS)}", exact=True).wait_for()
                page.click("#undo")
                page.get_by_text(f"0 of {len(ITEMS)}", exact=True).wait_for()
                assert page.locator("#undo").is_hidden() and page.locator("#first").inner_text() == expected[0]
                page.fill("#reason", "it listens")
                page.click("#take-second")
            else:
                page.keyboard.press("1")
        page.locator("#finished").wait_for(state="visible")
        assert page.title() == "Which reply is better?" and page.locator("img").count() == 0
    kept = store.answers()
    assert len(kept) == len(ITEMS) and [answer.reason for answer in kept if answer.reason] == ["it listens"]


def test_a_phone_shows_context_replies_and_buttons_at_once(tmp_path):
    """At 390 x 844, with a context and replies that are longer than any recorded one."""
    many = [{"id": "test/0", "context": [{"role": "user", "text": f"line {i} " * 30} for i in range(9)], "reply": ""}]
    pairs = items([{**many[0], "reply": "plain words " * 60}], [{**many[0], "reply": "warm words " * 60}])
    with serving(pairs, tmp_path) as (port, _), open_browser() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("#rater", "ann")
        page.keyboard.press("Enter")
        page.locator("#compare").wait_for(state="visible")
        for place in (
            "#context",
            "#first >> xpath=..",
            "#second >> xpath=..",
            "#take-first",
            "#take-tie",
            "#take-second",
        ):
            box = page.locator(place).bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= 844 and box["x"] + box["width"] <= 390, place
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        # The last message, which the replies answer, is in sight.
        assert page.evaluate(
            "(c => c.scrollTop + c.clientHeight >= c.scrollHeight - 1)(document.querySelector('#context'))"
        )
