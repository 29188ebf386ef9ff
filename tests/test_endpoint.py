"""The client against a real server on loopback with every kind of failure; `tests/test_serve.py` has a real model."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
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
from attune.data.dialogue import Dialogue, Example, Turn, write_dialogues
from attune.models.encoder import load_encoder
from attune.pairs.dbt_llm import llm_judge, llm_source, parse_replies, parse_score
from attune.pairs.endpoint import Request, answers_file, ask
from attune.pairs.ranked import scored_pairs
from attune.runtime.errors import UserError
from attune.runtime.io import read_prompt
from stages.pairs import main

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = {name: str(ROOT / f"data/prompts/dbt_{name}.txt") for name in ("replies", "judge")}
GOOD = json.dumps({"follow": ["How are you?", "You sound sad."], "ignore": ["Buy a car.", "It rains."]})
EXAMPLES = [Example(f"train/{i:03}", "job crisis", (Turn("user", f"I lost job {i}."),), "Oh.") for i in range(12)]


class Server(ThreadingHTTPServer):
    """Records the requests and answers with `plan(number, body)`: status, text, and optionally the number of
    characters after which the connection is closed."""

    daemon_threads = True

    def __init__(self, plan):
        self.received, self.keys, self.lock = [], set(), threading.Lock()
        self.active, self.most = 0, 0
        super().__init__(("127.0.0.1", 0), self.handler(plan))

    def handler(server, plan):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                with server.lock:
                    server.received.append(body)
                    server.keys.add(self.headers["Authorization"])
                    server.active += 1
                    server.most = max(server.most, server.active)
                    number = len(server.received)
                status, text, *sent = plan(number, body)
                with server.lock:
                    server.active -= 1
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                # Else the client would back off for half a second or more.
                self.send_header("retry-after-ms", "1")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text[: sent[0] if sent else None].encode())

            def log_message(self, *args):
                pass

        return Handler

    def handle_error(self, request, client_address):
        """Ignore clients that gave up waiting."""
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
    """The sections `llm` and `endpoint`."""
    keys = {"key_variable", "concurrency", "retries", "timeout"} & changes.keys()
    endpoint = {key: changes.pop(key) for key in keys}
    prompts = {"prompt": PROMPTS["replies"], "judge_prompt": PROMPTS["judge"]}
    return factory.llm(base_url=url, **prompts | changes), factory.endpoint(**endpoint)


def requests(n):
    return [Request(f"question {i}", 0.5, i) for i in range(n)]


def test_answers_are_cached(tmp_path, capsys):
    with serving(lambda number, body: (200, completion(json.loads(body)["messages"][0]["content"]))) as (server, url):
        first = ask(*settings(url), [*requests(10), *requests(5)], tmp_path / "a.sqlite")
        assert first == [f"question {i}" for i in [*range(10), *range(5)]]
        assert len(server.received) == 10 and server.most <= 3
        assert ask(*settings(url), requests(14), tmp_path / "a.sqlite")[:10] == first[:10]
        assert len(server.received) == len(set(server.received)) == 14
        # The key of an answer includes temperature, model and seed.
        ask(*settings(url, model="other"), requests(1), tmp_path / "a.sqlite")
        assert len(server.received) == 15
    lines = capsys.readouterr().out.splitlines()
    assert "10 requests, 0 of them answered before and 10 to ask" in lines[0]
    # 10 questions of 10 characters; 64 tokens an answer at 2 USD a million.
    assert "about 25 tokens in and at most 640 out, at most 0.00 USD" in lines[0]
    assert "14 requests, 10 of them answered before and 4 to ask" in lines[1]


def test_server_errors_are_retried(tmp_path):
    failures = {1: 429, 2: 500, 3: 503}
    with serving(lambda number, body: (failures.get(number, 200), completion("yes"))) as (server, url):
        assert ask(*settings(url), requests(4), tmp_path / "a.sqlite") == ["yes"] * 4
        assert len(server.received) == 4 + 3


def test_concurrency_limit(tmp_path):
    together = threading.Barrier(3)

    def plan(number, body):
        together.wait(timeout=20)  # no answer before three requests are active
        return 200, completion("late")

    with serving(plan) as (server, url):
        assert ask(*settings(url), requests(6), tmp_path / "a.sqlite") == ["late"] * 6
        assert (len(server.received), server.most) == (6, 3)


def test_rerun_after_server_errors_sends_only_what_is_missing(tmp_path):
    dying = [True]

    def plan(number, body):
        if dying[0] and number > 5:
            return 500, "{}"
        return 200, completion("yes")

    with serving(plan) as (server, url):
        with pytest.raises(UserError, match="its answers are cached: run the same command again"):
            ask(*settings(url, concurrency=1, retries=1), requests(12), tmp_path / "a.sqlite")
        answered = set(server.received[:5])
        dying[0] = False
        del server.received[:]
        assert ask(*settings(url), requests(12), tmp_path / "a.sqlite") == ["yes"] * 12
        assert len(server.received) == 7 and not answered & set(server.received)


def test_timeout_is_retried(tmp_path):
    held = threading.Event()

    def plan(number, body):
        if number == 3:
            held.wait(timeout=60)
        return 200, completion("yes")

    with serving(plan) as (server, url):
        assert ask(*settings(url, concurrency=1, timeout=1.0), requests(4), tmp_path / "a.sqlite") == ["yes"] * 4
        held.set()
        assert len(server.received) == 5 and server.received[2] == server.received[3] and len(set(server.received)) == 4


def test_rerun_after_timeouts_sends_only_what_is_missing(tmp_path):
    held = threading.Event()

    def plan(number, body):
        if number > 2:
            held.wait(timeout=60)
        return 200, completion("yes")

    with serving(plan) as (server, url):
        with pytest.raises(
            UserError, match=r"does not answer \(APITimeoutError.*are cached: run the same command again"
        ):
            ask(*settings(url, concurrency=1, timeout=1.0, retries=1), requests(5), tmp_path / "a.sqlite")
        # Two answers, then one request and its repetition.
        assert len(server.received) == 4
        answered = set(server.received[:2])
        held.set()
        del server.received[:]
        assert ask(*settings(url), requests(5), tmp_path / "a.sqlite") == ["yes"] * 5
        assert len(server.received) == 3 and not answered & set(server.received)


def test_broken_connection_is_retried(tmp_path):
    with serving(lambda number, body: (200, completion("yes"), 40 if number in (2, 4) else None)) as (server, url):
        assert ask(*settings(url, concurrency=1), requests(3), tmp_path / "a.sqlite") == ["yes"] * 3
        assert len(server.received) == 3 + 2 and len(set(server.received)) == 3


def test_rerun_after_broken_connections_sends_only_what_is_missing(tmp_path):
    dying = [True]

    def plan(number, body):
        return 200, completion("yes"), 40 if dying[0] and number > 2 else None

    with serving(plan) as (server, url):
        with pytest.raises(UserError, match=r"does not answer \(APIConnectionError.*run the same command again"):
            ask(*settings(url, concurrency=1, retries=1), requests(5), tmp_path / "a.sqlite")
        answered = set(server.received[:2])
        dying[0] = False
        del server.received[:]
        assert ask(*settings(url), requests(5), tmp_path / "a.sqlite") == ["yes"] * 5
        assert len(server.received) == 3 and not answered & set(server.received)


def test_missing_server_is_an_error(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=r"does not answer \(APIConnectionError"):
        ask(*settings(url, retries=0), requests(2), tmp_path / "a.sqlite")


NOT_COMPLETIONS = {
    "no JSON": "<html>busy</html>",
    "not an object": "[1]",
    "no choices": json.dumps({"choices": []}),
    "no text": completion(None),
}


@pytest.mark.parametrize("case", NOT_COMPLETIONS)
def test_responses_that_are_no_completion_are_not_cached(tmp_path, case):
    broken = [True]

    def plan(number, body):
        return 200, NOT_COMPLETIONS[case] if broken[0] and "question 1" in body else completion("yes")

    with serving(plan) as (_, url):
        assert ask(*settings(url), requests(3), tmp_path / "a.sqlite") == ["yes", None, "yes"]
        broken[0] = False
        assert ask(*settings(url), requests(3), tmp_path / "a.sqlite") == ["yes"] * 3


def test_refusals_are_cached(tmp_path):
    with serving(lambda number, body: (400, json.dumps({"error": {"message": "filtered"}}))) as (server, url):
        for _ in range(2):
            assert ask(*settings(url), requests(1), tmp_path / "a.sqlite") == [None]
        assert len(server.received) == 1


def test_a_setting_that_the_endpoint_refuses_is_named_and_asked_again(tmp_path):
    refuses = [True]

    def plan(number, body):
        refusal = 400, json.dumps({"error": {"message": "max_tokens is too large"}})
        return refusal if refuses[0] or "question 1" in body else (200, completion("yes"))

    with serving(plan) as (server, url):
        with pytest.raises(UserError, match=r"refused the first 10 requests: .*max_tokens is too large.*max_tokens, "):
            ask(*settings(url), requests(40), tmp_path / "a.sqlite")
        sent = len(server.received)
        assert sent < 40
        # Of single requests that are refused among others that are answered, none is sent again.
        refuses[0] = False
        for _ in range(2):
            assert ask(*settings(url), requests(3), tmp_path / "a.sqlite") == ["yes", None, "yes"]
        assert len(server.received) == sent + 3


def test_key_is_read_from_its_variable_and_never_written(tmp_path, monkeypatch, capsys):
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


def test_rerun_after_a_kill_sends_only_what_is_missing(tmp_path):
    """The process is killed while it waits for the fifth answer."""
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
        answered = set(server.received[:4])
        del server.received[:]
        assert ask(*settings(url), requests(8), tmp_path / "a.sqlite") == ["yes"] * 8
        assert len(server.received) == 4 and not answered & set(server.received)


def test_pairs_from_source_and_judge(tmp_path):
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
    assert [pair.id for pair in pairs] == [e.id for e in EXAMPLES if e.id != "train/003"]
    assert {(p.chosen, p.chosen_score, p.rejected, p.rejected_score) for p in pairs} == {
        ("How are you?", 0.9, "Buy a car.", 0.2)
    }
    # One answer without replies, eleven replies without a score.
    assert malformed == 12


def from_endpoint(url, judge):
    """Params of a first round of rule `dbt` whose candidates, and scores if `judge` is llm, are from an endpoint."""
    llm, endpoint = settings(url)
    scorer = llm.judge_prompt if judge == "llm" else "models/dbt"
    return factory.params(
        pairs=factory.pairs(rule="dbt", margin=0.0),
        context=factory.context(targets="every", max_turns=3),
        llm=llm,
        endpoint=endpoint,
        rounds={"e1": factory.dpo_round(candidates=llm.prompt, scorer=scorer)},
    )


@pytest.mark.parametrize("judge", ["classifier", "llm"])
def test_stage_with_an_endpoint(tmp_path, monkeypatch, judge):
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    train = [Dialogue(e.id, "c", "train", e.label, (*e.context, Turn("assistant", e.target))) for e in EXAMPLES]
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
        first, count = metrics.read_bytes(), len(server.received)
        main("e1", params)
        assert (metrics.read_bytes(), len(server.received)) == (first, count)
        assert pq.read_table("data/pairs/e1.parquet").to_pylist() == rows

    replies = {text for group in json.loads(GOOD).values() for text in group}
    assert [row["id"] for row in rows] == [f"{e.id}:1" for e in EXAMPLES if e.id != "train/003"]
    for row in rows:
        assert (row["source"], row["epoch"], row["label"]) == ("llm", 1, "job crisis")
        assert row["chosen_score"] > row["rejected_score"] and {row["chosen"], row["rejected"]} <= replies
    shown = json.loads(first)
    # One answer without replies; from the judge, eleven replies without a score.
    assert (shown["pairs"], shown["malformed"]) == (11, 1 if judge == "classifier" else 12)
    assert count == (12 if judge == "classifier" else 12 + 4 * 11)
    if judge == "llm":
        assert {(row["chosen"], row["chosen_score"], row["rejected_score"]) for row in rows} == {
            ("You sound sad.", 0.9, 0.2)
        }
    else:
        scores = [stage_probabilities(Path("models/dbt"), [e.context] * 4, sorted(replies), params.hardware)
                  for e in EXAMPLES if e.id != "train/003"]  # fmt: skip
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
def test_answers_without_both_kinds_of_replies_are_malformed(answer):
    assert parse_replies(answer) is None


@pytest.mark.parametrize(
    ("answer", "score"),
    [('{"score": 80}', 0.8), ('Well: {"score": 0}.', 0), ('{"score": 101}', None), ('{"score": true}', None),
     ('{"score": "80"}', None), ("80", None), (None, None), ('{"score": NaN}', None)],
)  # fmt: skip
def test_parse_score(answer, score):
    assert parse_score(answer) == score


def test_prompt_without_its_placeholders_is_an_error(tmp_path):
    (tmp_path / "p.txt").write_text("Hello $name")
    with pytest.raises(UserError, match=r"must have \$conversation, \$n and no other"):
        read_prompt(tmp_path / "p.txt", {"conversation", "n"}, "llm.prompt")
    with pytest.raises(UserError, match=r"none\.txt is missing: llm\.prompt names it"):
        read_prompt(tmp_path / "none.txt", {"n"}, "llm.prompt")


def test_experiments_share_the_cache_of_the_workspace(tmp_path, monkeypatch):
    """DVC writes the workspace's cache into the configuration of the folder in which it runs an experiment."""
    files = []
    for name in ("workspace", "experiment"):
        (tmp_path / name).mkdir()
        project(tmp_path / name)
        if name == "experiment":
            shared = f"[cache]\n    dir = {tmp_path / 'workspace/.dvc/cache'}\n"
            (tmp_path / name / ".dvc/config.local").write_text(shared, encoding="utf-8")
        monkeypatch.chdir(tmp_path / name)
        files.append(answers_file())
    assert files == [tmp_path / "workspace/.dvc/cache/llm/answers.sqlite"] * 2
