"""Blind comparisons: what is asked and kept, who may ask, and what follows; on a server that runs, in a browser."""

import csv
import json
import socket
import sqlite3
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection

import pytest
import uvicorn
from helpers import ROOT, open_browser

from stages.errors import UserError
from stages.params import load
from stages.rate import app, current, export, read
from stages.ratings import Answer, RatingsError, Store, alpha, as_csv, first, items, order, summary

NAMES = ("sft", "sft-dpo")
HOSTILE = "<img src=x onerror=\"document.title = 'taken'\">"


def replies(words, count=12):
    return [
        {"id": f"test/{i}", "context": [{"role": "user", "text": f"context {i}"}], "reply": f"{words} {i}"}
        for i in range(count)
    ]


ITEMS = items(replies("plain"), [*replies("warm")[:10], replies("plain")[10], {**replies("x")[11], "reply": HOSTILE}])


def an_answer(rater="ann", example=0, choice="b", **changes):
    item = next(one for one in ITEMS if one.example == f"test/{example}")
    return replace(Answer(rater, item.example, *NAMES, choice, "", "a", item.replies, "2024-01-31"), **changes)


@pytest.fixture
def server(tmp_path):
    """The page on a port of this machine: (port, the store behind it)."""
    store = Store(tmp_path / "answers.sqlite")
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    served = uvicorn.Server(uvicorn.Config(app(ITEMS, NAMES, store, 13, [f"127.0.0.1:{port}"]), log_level="error"))
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listening]})
    thread.start()
    yield port, store
    served.should_exit = True
    thread.join()
    listening.close()


def ask(port, method, path, body=None, **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    content = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, None if body is None else json.dumps(body), content | named)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text) if text.startswith("{") else text


def test_only_replies_that_differ_are_compared():
    assert [item.example for item in ITEMS] == [f"test/{i}" for i in (*range(10), 11)]


def test_raters_see_other_orders_and_each_side_first_as_often():
    many = items(replies("plain", 400), replies("warm", 400))
    orders = [[item.example for item in order(many, rater, 13)] for rater in ("ann", "ben", "ann")]
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    begun = Counter(first(item, "ann", 13) for item in many)
    assert 160 < begun["a"] < 240
    assert [first(item, "ann", 13) for item in many] != [first(item, "ben", 13) for item in many]


def test_a_rater_answers_everything_once_and_goes_on_after_a_break(server):
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
    kept = {one.example: one for one in Store(store.path).answers()}
    for name, better in seen:
        chosen = {"a": by_example[name].reply_a, "b": by_example[name].reply_b}[kept[name].choice]
        assert (chosen, kept[name].reason) == (better, "so")
    assert {one.choice for one in kept.values()} == {"a", "b"}
    assert ask(port, "GET", "/next?rater=ben")[1]["done"] == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"rater": "", "example": "test/0", "hash": "", "better": "tie"}, "a rater's name has 1 to 80 characters"),
        ({"rater": "ann", "example": "test/99", "hash": "", "better": "tie"}, "no answer that this page sends"),
        ({"rater": "ann", "example": "test/0", "hash": "old", "better": "tie"}, "the replies have changed"),
        ({"rater": "ann", "example": "test/0", "hash": ITEMS[0].replies, "better": "b"}, "no answer that"),
        ({"rater": "ann", "example": "test/0", "hash": ITEMS[0].replies, "better": "tie", "reason": "x" * 2001},
         "a reason has at most 2000"),
        ([], "no answer that this page sends"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused_and_not_kept(server, body, message):
    port, store = server
    status, found = ask(port, "POST", "/answer", body)
    assert status == 400 and message in found["error"]
    assert store.answers() == []


def test_other_hosts_and_other_sites_are_refused(server):
    port, store = server
    body = {"rater": "ann", "example": "test/0", "hash": ITEMS[0].replies, "better": "tie"}
    assert ask(port, "GET", "/", Host="evil.example")[0] == 403
    assert ask(port, "POST", "/answer", body, Origin="http://evil.example")[0] == 403
    assert ask(port, "POST", "/answer", body, Content_Type="text/plain")[0] == 400
    assert store.answers() == []
    assert ask(port, "POST", "/answer", body, Origin=f"http://127.0.0.1:{port}")[0] == 200


def test_many_at_once_lose_nothing(server):
    port, store = server

    def rate(rater):
        for item in ITEMS:
            body = {"rater": rater, "example": item.example, "hash": item.replies, "better": "tie"}
            assert ask(port, "POST", "/answer", body)[0] == 200

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(rate, [f"rater {i}" for i in range(10)]))
    assert Counter(one.rater for one in store.answers()) == {f"rater {i}": len(ITEMS) for i in range(10)}


def test_a_second_answer_takes_the_first_ones_place_and_old_replies_do_not_count(tmp_path):
    store = Store(tmp_path / "answers.sqlite")
    for one in (an_answer(choice="a"), an_answer(choice="b"), an_answer(example=1, replies="gone")):
        store.keep(one)
    assert len(store.answers()) == 2
    assert current(store.answers(), ITEMS, NAMES) == [an_answer(choice="b")]
    assert current(store.answers(), ITEMS, NAMES[::-1]) == []
    with pytest.raises(RatingsError, match="choice 'c' is none of a, b, tie"):
        store.keep(an_answer(choice="c"))


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "answers.sqlite").write_text("no database, but long enough to be read as the header of one" * 9)
    with pytest.raises(RatingsError, match=r"answers\.sqlite cannot be read or written \(file is not a database\)"):
        Store(tmp_path / "answers.sqlite")


def test_answers_are_on_the_disk_when_they_are_kept(tmp_path):
    store = Store(tmp_path / "answers.sqlite")
    store.keep(an_answer())
    with sqlite3.connect(f"file:{store.path}?mode=ro", uri=True) as base:
        assert base.execute("SELECT count(*) FROM answers").fetchone() == (1,)


def test_the_win_rate_counts_ties_half_and_its_interval_holds_it():
    answers = [an_answer(example=i, choice="b") for i in range(6)] + [an_answer(example=i, choice="a") for i in (6, 7)]
    answers += [an_answer(example=i, choice="tie") for i in (8, 9)]
    found = summary(answers, 1000, 13)
    assert (found["win_rate"], found["ties"], found["answers"], found["raters"]) == (70, 20, 10, 1)
    assert found["win_rate.low"] < 70 < found["win_rate.high"] and "agreement" not in found
    assert summary(answers, 1000, 13) == found
    # Ten answers to one context are one context.
    same = [an_answer(rater=f"{i}", example=0) for i in range(10)]
    assert summary([*same, an_answer(example=1, choice="a")], 1000, 13)["win_rate.low"] == 0
    with pytest.raises(RatingsError, match="no answers yet"):
        summary([], 1000, 13)


def test_agreement_is_krippendorffs_alpha():
    """1 - observed over expected disagreement, of two raters without gaps."""
    ben, ann = "abbbbbbbbb", "bbbabbabbb"
    units = [("ben", ben), ("ann", ann)]
    coded = [an_answer(rater=who, example=i, choice=c) for who, codes in units for i, c in enumerate(codes)]
    # By hand: of 20 values 3 are a; 3 examples disagree, so 6 of 20 pairs; by chance 2 * 3 * 17 of 20 * 19 would.
    assert alpha(coded) == pytest.approx(1 - (6 / 20) / (2 * 3 * 17 / (20 * 19)))
    assert alpha([one for one in coded if one.rater == "ben"]) is None


def test_export_is_the_answers_and_what_they_say(tmp_path, capsys):
    answers = [an_answer(example=i, choice="b") for i in range(8)] + [an_answer(rater="ben", choice="b")]
    export(answers, tmp_path / "out.csv", load(ROOT / "params.yaml"))
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["choice"] for row in csv.DictReader(file)] == ["b"] * 9
    text = capsys.readouterr().out
    assert "sft-dpo is the better one against sft in 100.0 % (100.0 to 100.0) of 9 answers" in text
    assert as_csv(answers).count("\n") == 10


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = load(ROOT / "params.yaml")
    with pytest.raises(UserError, match="'dbo' is none of variants: base, sft, sft-dpo"):
        read(("sft", "dbo"), params)
    with pytest.raises(UserError, match=r"sft\.parquet is missing: run `dvc repro generate@sft`"):
        read(NAMES, params)


def test_a_person_rates_in_a_browser(server):
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
                page.fill("#reason", "it listens")
                page.click("#take-second")
            else:
                page.keyboard.press("1")
        page.locator("#finished").wait_for(state="visible")
        assert page.title() == "Which reply is the better one?" and page.locator("img").count() == 0
    kept = store.answers()
    assert len(kept) == len(ITEMS) and [one.reason for one in kept if one.reason] == ["it listens"]
