"""The endpoint against real servers on loopback: one that misbehaves in every way, and `transformers serve`."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import factory
import pyarrow.parquet as pq
import pytest
import torch
from helpers import project

from attune.classifiers.common.turn_classifier import TurnClassifier, save
from attune.classifiers.common.turn_classifier import make_model as make_head
from attune.classifiers.dbt.classifier import LABELS
from attune.classifiers.dbt.classifier import probabilities as stage_probabilities
from attune.config.params import load
from attune.data.dialogue import Dialogue, Example, Turn, write_dialogues
from attune.models.encoder import load_encoder
from attune.pairs.build import answers_file
from attune.pairs.dbt import scored_pairs
from attune.pairs.dbt_llm import llm_judge, llm_source, parse_replies, parse_score, read_prompt
from attune.pairs.endpoint import Request, ask
from attune.runtime.errors import UserError
from stages.pairs import main

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = {name: str(ROOT / f"data/prompts/dbt_{name}.txt") for name in ("replies", "judge")}
GOOD = json.dumps({"follow": ["How are you?", "You sound sad."], "ignore": ["Buy a car.", "It rains."]})
EXAMPLES = [Example(f"train/{i:03}", "job crisis", (Turn("user", f"I lost job {i}."),), "Oh.") for i in range(12)]


class Server(ThreadingHTTPServer):
    """Counts the requests by their body and answers as `plan(number, body)` says: (status, text of the answer), and
    after how many characters of the text the connection is closed, if it is."""

    daemon_threads = True

    def __init__(self, plan):
        self.asked, self.keys, self.lock = [], set(), threading.Lock()
        self.under_way, self.most = 0, 0
        super().__init__(("127.0.0.1", 0), self.handler(plan))

    def handler(server, plan):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                with server.lock:
                    server.asked.append(body)
                    server.keys.add(self.headers["Authorization"])
                    server.under_way += 1
                    server.most = max(server.most, server.under_way)
                    number = len(server.asked)
                status, text, *sent = plan(number, body)
                with server.lock:
                    server.under_way -= 1
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                # The client would back off for half a second and more.
                self.send_header("retry-after-ms", "1")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text[: sent[0] if sent else None].encode())

            def log_message(self, *args):
                pass

        return Handler

    def handle_error(self, request, client_address):
        """A client that gave up waiting is no error of the server."""
        if not isinstance(sys.exception(), BrokenPipeError | ConnectionResetError):
            super().handle_error(request, client_address)


def completion(text):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


@contextmanager
def serving(plan):
    server = Server(plan)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settings(url, **changes):
    """What the endpoint generates, and how it is reached."""
    reached = {
        name: changes.pop(name) for name in ("key_variable", "concurrency", "retries", "timeout") if name in changes
    }
    llm = factory.llm(base_url=url, prompt=PROMPTS["replies"], judge_prompt=PROMPTS["judge"], **changes)
    return llm, factory.endpoint(**reached)


def requests(n):
    return [Request(f"question {i}", 0.5, i) for i in range(n)]


def test_an_answer_is_asked_for_once(tmp_path, capsys):
    with serving(lambda number, body: (200, completion(json.loads(body)["messages"][0]["content"]))) as (server, url):
        first = ask(*settings(url), [*requests(10), *requests(5)], tmp_path / "a.sqlite")
        assert first == [f"question {i}" for i in [*range(10), *range(5)]]
        assert len(server.asked) == 10 and server.most <= 3
        assert ask(*settings(url), requests(14), tmp_path / "a.sqlite")[:10] == first[:10]
        assert len(server.asked) == len(set(server.asked)) == 14
        # Another temperature, model or seed is another question.
        ask(*settings(url, model="other"), requests(1), tmp_path / "a.sqlite")
        assert len(server.asked) == 15
    lines = capsys.readouterr().out.splitlines()
    assert "10 requests, 0 of them answered before and 10 to ask" in lines[0]
    # 10 questions of 10 characters; 64 tokens an answer at 2 USD a million.
    assert "about 25 tokens in and at most 640 out, at most 0.00 USD" in lines[0]
    assert "14 requests, 10 of them answered before and 4 to ask" in lines[1]


def test_a_busy_server_is_asked_again(tmp_path):
    failures = {1: 429, 2: 500, 3: 503}
    with serving(lambda number, body: (failures.get(number, 200), completion("yes"))) as (server, url):
        assert ask(*settings(url), requests(4), tmp_path / "a.sqlite") == ["yes"] * 4
        assert len(server.asked) == 4 + 3


def test_a_slow_server_is_waited_for_with_as_many_requests_as_allowed(tmp_path):
    together = threading.Barrier(3)

    def plan(number, body):
        together.wait(timeout=20)  # an answer only once three are under way
        return 200, completion("late")

    with serving(plan) as (server, url):
        assert ask(*settings(url), requests(6), tmp_path / "a.sqlite") == ["late"] * 6
        assert (len(server.asked), server.most) == (6, 3)


def test_a_server_that_dies_half_way_is_taken_up_where_it_stopped(tmp_path):
    dying = [True]

    def plan(number, body):
        if dying[0] and number > 5:
            return 500, "{}"
        return 200, completion("yes")

    with serving(plan) as (server, url):
        with pytest.raises(UserError, match="what it answered is kept: run the same command again"):
            ask(*settings(url, concurrency=1, retries=1), requests(12), tmp_path / "a.sqlite")
        answered = set(server.asked[:5])
        dying[0] = False
        del server.asked[:]
        assert ask(*settings(url), requests(12), tmp_path / "a.sqlite") == ["yes"] * 12
        assert len(server.asked) == 7 and not answered & set(server.asked)


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(tmp_path):
    held = threading.Event()

    def plan(number, body):
        if number == 3:
            held.wait(timeout=60)
        return 200, completion("yes")

    with serving(plan) as (server, url):
        assert ask(*settings(url, concurrency=1, timeout=1.0), requests(4), tmp_path / "a.sqlite") == ["yes"] * 4
        held.set()
        assert len(server.asked) == 5 and server.asked[2] == server.asked[3] and len(set(server.asked)) == 4


def test_a_server_that_falls_silent_is_named_and_taken_up_where_it_stopped(tmp_path):
    held = threading.Event()

    def plan(number, body):
        if number > 2:
            held.wait(timeout=60)
        return 200, completion("yes")

    with serving(plan) as (server, url):
        with pytest.raises(UserError, match=r"does not answer \(APITimeoutError.*is kept: run the same command again"):
            ask(*settings(url, concurrency=1, timeout=1.0, retries=1), requests(5), tmp_path / "a.sqlite")
        # Two answers, then one request and its repetition.
        assert len(server.asked) == 4
        answered = set(server.asked[:2])
        held.set()
        del server.asked[:]
        assert ask(*settings(url), requests(5), tmp_path / "a.sqlite") == ["yes"] * 5
        assert len(server.asked) == 3 and not answered & set(server.asked)


def test_a_connection_that_breaks_in_an_answer_is_asked_again(tmp_path):
    with serving(lambda number, body: (200, completion("yes"), 40 if number in (2, 4) else None)) as (server, url):
        assert ask(*settings(url, concurrency=1), requests(3), tmp_path / "a.sqlite") == ["yes"] * 3
        assert len(server.asked) == 3 + 2 and len(set(server.asked)) == 3


def test_connections_that_break_in_every_answer_are_named_and_nothing_is_asked_twice(tmp_path):
    dying = [True]

    def plan(number, body):
        return 200, completion("yes"), 40 if dying[0] and number > 2 else None

    with serving(plan) as (server, url):
        with pytest.raises(UserError, match=r"does not answer \(APIConnectionError.*run the same command again"):
            ask(*settings(url, concurrency=1, retries=1), requests(5), tmp_path / "a.sqlite")
        answered = set(server.asked[:2])
        dying[0] = False
        del server.asked[:]
        assert ask(*settings(url), requests(5), tmp_path / "a.sqlite") == ["yes"] * 5
        assert len(server.asked) == 3 and not answered & set(server.asked)


def test_a_server_that_is_not_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=r"does not answer \(APIConnectionError"):
        ask(*settings(url, retries=0), requests(2), tmp_path / "a.sqlite")


RUBBISH = {
    "no JSON": "<html>busy</html>",
    "not an object": "[1]",
    "no choices": json.dumps({"choices": []}),
    "no text": completion(None),
}


@pytest.mark.parametrize("case", RUBBISH)
def test_rubbish_is_passed_over_and_not_kept(tmp_path, case):
    sick = [True]

    def plan(number, body):
        return 200, RUBBISH[case] if sick[0] and "question 1" in body else completion("yes")

    with serving(plan) as (_, url):
        assert ask(*settings(url), requests(3), tmp_path / "a.sqlite") == ["yes", None, "yes"]
        sick[0] = False
        assert ask(*settings(url), requests(3), tmp_path / "a.sqlite") == ["yes"] * 3


def test_a_refusal_is_an_answer(tmp_path):
    with serving(lambda number, body: (400, json.dumps({"error": {"message": "filtered"}}))) as (server, url):
        for _ in range(2):
            assert ask(*settings(url), requests(1), tmp_path / "a.sqlite") == [None]
        assert len(server.asked) == 1


def test_the_key_comes_from_its_variable_and_is_written_nowhere(tmp_path, monkeypatch, capsys):
    with serving(lambda number, body: (200 if number < 3 else 401, completion("yes"))) as (server, url):
        llm = settings(url, key_variable="SOME_KEY", retries=0)
        monkeypatch.delenv("SOME_KEY", raising=False)
        with pytest.raises(UserError, match="the environment variable SOME_KEY is not set"):
            ask(*llm, requests(1), tmp_path / "a.sqlite")
        monkeypatch.setenv("SOME_KEY", "secret-4711")
        ask(*llm, requests(2), tmp_path / "a.sqlite")
        assert server.keys == {"Bearer secret-4711"}
        with pytest.raises(UserError, match=r"AuthenticationError.*the key in the environment variable SOME_KEY"):
            ask(*llm, requests(3), tmp_path / "a.sqlite")
    assert all(b"secret-4711" not in path.read_bytes() for path in tmp_path.iterdir())
    assert "secret-4711" not in capsys.readouterr().out


KILLED = """
import sys
from pathlib import Path
from tests.test_endpoint import requests, settings
from attune.pairs.endpoint import ask
ask(*settings(sys.argv[1], concurrency=1), requests(8), Path(sys.argv[2]))
"""


def test_a_killed_run_asks_nothing_twice(tmp_path):
    """The fifth request is never answered: the process is killed while it waits."""
    reached, held = threading.Event(), threading.Event()

    def plan(number, body):
        if number == 5:
            reached.set()
            held.wait(timeout=60)
        return 200, completion("yes")

    with serving(plan) as (server, url):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, url, str(tmp_path / "a.sqlite")], cwd=ROOT, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert reached.wait(timeout=120)
        process.send_signal(signal.SIGKILL)
        process.wait()
        held.set()
        answered = set(server.asked[:4])
        del server.asked[:]
        assert ask(*settings(url), requests(8), tmp_path / "a.sqlite") == ["yes"] * 8
        assert len(server.asked) == 4 and not answered & set(server.asked)


def test_pairs_from_an_endpoint_that_writes_and_judges(tmp_path):
    def plan(number, body):
        text = json.loads(body)["messages"][0]["content"]
        if "The reply:" in text:
            reply = text.split("The reply:\n\n")[1].split("\n\n")[0]
            return 200, completion("no idea" if reply == "It rains." else f'{{"score": {90 if "?" in reply else 20}}}')
        return 200, completion("Sorry, no." if "job 3." in text else f"Here:\n```json\n{GOOD}\n```")

    with serving(plan) as (_, url):
        llm = settings(url)
        source, judge = llm_source(*llm, 13, 1, tmp_path / "a.sqlite"), llm_judge(*llm, tmp_path / "a.sqlite")
        pairs, malformed = scored_pairs(EXAMPLES, source, judge, name="llm", margin=0.5, epoch=1)
    assert [pair.id for pair in pairs] == [one.id for one in EXAMPLES if one.id != "train/003"]
    assert {(p.chosen, p.chosen_score, p.rejected, p.rejected_score) for p in pairs} == {
        ("How are you?", 0.9, "Buy a car.", 0.2)
    }
    # One answer without replies, and eleven replies without a score.
    assert malformed == 12


def from_endpoint(url, judge):
    """Params of recipe `dbt`'s first round from the endpoint at `url`."""
    params, (llm, endpoint) = load(ROOT / "params.yaml"), settings(url)
    scorer = llm.judge_prompt if judge == "llm" else "models/dbt"
    first = factory.dpo_round(candidates=llm.prompt, scorer=scorer)
    pairs = replace(params.pairs, rule="dbt", margin=0.0, limit=None)
    context = factory.context(targets="every", max_turns=3)
    more = {"context": context, "llm": llm, "endpoint": endpoint, "rounds": {"e1": first}}
    return replace(params.with_hardware(factory.hardware()), pairs=pairs, **more)


@pytest.mark.parametrize("judge", ["classifier", "llm"])
def test_the_stage_asks_the_endpoint(tmp_path, monkeypatch, judge):
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    train = [
        Dialogue(one.id, "c", "train", one.label, (*one.context, Turn("assistant", one.target))) for one in EXAMPLES
    ]
    write_dialogues(train, Path("data/dialogues/train.parquet"))

    def plan(number, body):
        text = json.loads(body)["messages"][0]["content"]
        if "The reply:" in text:
            return 200, completion("no idea" if "It rains." in text else f'{{"score": {90 if "sad" in text else 20}}}')
        return 200, completion("Sorry, no." if "job 3." in text else GOOD)

    with serving(plan) as (server, url):
        params = from_endpoint(url, judge)
        if judge == "classifier":
            torch.manual_seed(0)
            encoder, tokenizer = load_encoder(params.encoder, params.hardware)
            save(
                TurnClassifier(make_head(encoder, len(LABELS)).eval(), tokenizer, LABELS, 48, 3), {}, Path("models/dbt")
            )
        main("e1", params)
        rows, metrics = pq.read_table("data/pairs/e1.parquet").to_pylist(), Path("metrics/pairs/e1.json")
        first, asked = metrics.read_bytes(), len(server.asked)
        main("e1", params)
        assert (metrics.read_bytes(), len(server.asked)) == (first, asked)
        assert pq.read_table("data/pairs/e1.parquet").to_pylist() == rows

    replies = {text for group in json.loads(GOOD).values() for text in group}
    assert [row["id"] for row in rows] == [f"{one.id}:1" for one in EXAMPLES if one.id != "train/003"]
    for row in rows:
        assert (row["source"], row["epoch"], row["label"]) == ("llm", 1, "job crisis")
        assert row["chosen_score"] > row["rejected_score"] and {row["chosen"], row["rejected"]} <= replies
    shown = json.loads(first)
    # One answer without replies; of the judge eleven replies without a score.
    assert (shown["pairs"], shown["malformed"]) == (11, 1 if judge == "classifier" else 12)
    assert asked == (12 if judge == "classifier" else 12 + 4 * 11)
    if judge == "llm":
        assert {(row["chosen"], row["chosen_score"], row["rejected_score"]) for row in rows} == {
            ("You sound sad.", 0.9, 0.2)
        }
    else:
        scores = [stage_probabilities(Path("models/dbt"), [one.context] * 4, sorted(replies), params.hardware)
                  for one in EXAMPLES if one.id != "train/003"]  # fmt: skip
        for row, each in zip(rows, scores, strict=True):
            adherence = {reply: 1 - p[-1] for reply, p in zip(sorted(replies), each, strict=True)}
            assert (row["chosen"], row["rejected"]) == (
                max(adherence, key=adherence.get),
                min(adherence, key=adherence.get),
            )
            assert row["chosen_score"] == pytest.approx(adherence[row["chosen"]], abs=1e-6)


@pytest.mark.parametrize(
    "answer", [None, "", "{}", "[]", '{"follow": ["a"]}', '{"follow": [], "ignore": ["b"]}', "{" * 9]
)
def test_answers_without_both_kinds_of_replies(answer):
    assert parse_replies(answer) is None


@pytest.mark.parametrize(
    ("answer", "score"),
    [('{"score": 80}', 0.8), ('Well: {"score": 0}.', 0), ('{"score": 101}', None), ('{"score": true}', None),
     ('{"score": "80"}', None), ("80", None), (None, None), ('{"score": NaN}', None)],
)  # fmt: skip
def test_scores(answer, score):
    assert parse_score(answer) == score


def test_a_prompt_without_its_places_is_refused(tmp_path):
    (tmp_path / "p.txt").write_text("Hello $name")
    with pytest.raises(UserError, match=r"must have \$conversation, \$n and no other"):
        read_prompt(tmp_path / "p.txt", {"conversation", "n"})
    with pytest.raises(UserError, match="is missing"):
        read_prompt(tmp_path / "none.txt", {"n"})


@pytest.mark.slow
def test_transformers_serve_answers(tmp_path):
    """The library's own server with a tiny model: what is said is random, that it is said and kept is not."""
    pytest.importorskip("fastapi")
    from attune.models.tiny import make_model, train_tokenizer

    tokenizer = train_tokenizer(["i lost my job", "how are you"] * 3, 320, 2048)
    make_model(
        tokenizer,
        factory.tiny(vocab_size=320, hidden_size=16, intermediate_size=32, layers=1, heads=1, max_positions=2048),
        1,
    ).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(tmp_path / "m"), "--host", "127.0.0.1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"], stdout=log, stderr=log)
    try:
        llm = settings(f"http://127.0.0.1:{port}/v1", model=str(tmp_path / "m"), max_tokens=4, timeout=60.0)
        wait_for(port, process)
        answers = ask(*llm, requests(2), tmp_path / "a.sqlite")
        assert all(isinstance(answer, str) for answer in answers), (tmp_path / "log").read_text()[-2000:]
    finally:
        process.terminate()
        process.wait()
    assert ask(*llm, requests(2), tmp_path / "a.sqlite") == answers  # the server is gone


def wait_for(port, process):
    """Until something listens on `port`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as trial:
            trial.settimeout(1)
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        threading.Event().wait(0.1)
    raise AssertionError(f"nothing listens on port {port}")


def test_experiments_share_the_answers_with_the_workspace(tmp_path, monkeypatch):
    """DVC names the workspace's cache in the configuration of the folder in which it runs an experiment."""
    found = []
    for name in ("workspace", "experiment"):
        (tmp_path / name).mkdir()
        project(tmp_path / name)
        if name == "experiment":
            shared = f"[cache]\n    dir = {tmp_path / 'workspace/.dvc/cache'}\n"
            (tmp_path / name / ".dvc/config.local").write_text(shared, encoding="utf-8")
        monkeypatch.chdir(tmp_path / name)
        found.append(answers_file())
    assert found == [tmp_path / "workspace/.dvc/cache/llm/answers.sqlite"] * 2
