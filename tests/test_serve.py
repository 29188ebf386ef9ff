"""The endpoint of a variant: its replies, its door, and the clients that talk to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import factory
import pytest
import test_export
from helpers import ROOT, open_browser
from test_endpoint import completion, serving

from attune.pairs.endpoint import Request
from attune.pairs.endpoint import ask as request_answers
from attune.runtime.errors import ModelError, UserError
from attune.tools import serve
from attune.tools.chat import answers
from attune.tools.merged import write_merged
from attune.tools.remote import KEY, Remote
from attune.tools.serve import application, listening, model_folder, serve_vllm

made, run = test_export.made, test_export.run
SECRET = "s3cret"
SETTINGS = factory.generate(max_new_tokens=12, max_length=100)
HOSTILE = "<img src=x onerror=\"document.title = 'taken'\">"


@contextmanager
def served(folder, key=None):
    """The endpoint of the model in `folder`: its port."""
    import uvicorn

    bound = listening("127.0.0.1", 0)
    port = bound.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        app = application(folder.name, "cpu", key, [f"127.0.0.1:{port}"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


@pytest.fixture(scope="module")
def exported(made):
    from attune.config.params import load

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        write_merged("sft-dpo", load(), made / "out/sft-dpo", "fp32")
    return made / "out/sft-dpo"


@pytest.fixture(scope="module")
def port(exported):
    with served(exported) as port:
        yield port


@pytest.fixture(scope="module")
def locked(exported):
    with served(exported, SECRET) as port:
        yield port


def ask(port, path, body=None, **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    content = {"Content-Type": "application/json"} if body is not None else {}
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), content | headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text) if text.startswith("{") else text


def asked(text, model="sft-dpo", **settings):
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 12, **settings}


def content(answer):
    status, body = answer
    assert status == 200, body
    return body["choices"][0]["message"]["content"].strip()


def remote(port, model="sft-dpo", path="/v1"):
    return Remote(f"http://127.0.0.1:{port}{path}", model, SETTINGS)


def test_greedy_replies_are_the_variants(run, port):
    expected = test_export.of_variant(run, "models/dpo/e3")
    assert [content(ask(port, "/v1/chat/completions", asked(text))) for text in test_export.TEXTS] == expected
    talk = remote(port)
    streamed = ["".join(talk.say(text)[0]).strip() for text in test_export.TEXTS[:2]]
    # The engine's stream leaves out an unfinished character at the end. The second reply is to all turns.
    assert streamed[0] == expected[0].rstrip("\ufffd") and len(talk.turns) == 4
    body = asked("") | {"messages": [{"role": turn.role, "content": turn.text} for turn in talk.turns[:3]]}
    assert streamed[1] == content(ask(port, "/v1/chat/completions", body)).rstrip("\ufffd")


def test_stages_that_ask_an_endpoint_can_ask_it(port, tmp_path):
    llm = factory.llm(base_url=f"http://127.0.0.1:{port}/v1", model="sft-dpo", max_tokens=12)
    requests = [Request(text, 0.0, 1) for text in test_export.TEXTS[:2]]
    answers = request_answers(llm, factory.endpoint(timeout=60.0), requests, tmp_path / "a.sqlite")
    straight = [content(ask(port, "/v1/chat/completions", asked(one.text))) for one in requests]
    assert [answer.strip() for answer in answers] == straight


def test_a_temperature_samples(port):
    replies = {content(ask(port, "/v1/chat/completions", asked("Hi", temperature=1.5, seed=i))) for i in range(4)}
    assert len(replies) > 1


def test_the_door(port, locked):
    assert ask(port, "/v1/models")[1]["data"][0]["id"] == "sft-dpo"
    for path in ("/load_model", "/v1/completions", "/v1/responses", "/reset"):
        assert ask(port, path, {"model": "a/b"})[0] == 404
    assert ask(port, "/v1/chat/completions", asked("Hi", model="a/b"))[0] == 400
    # Another site's page, and another name for this machine.
    assert ask(port, "/v1/models", Origin="http://a.example")[0] == ask(port, "/v1/models", Host="a.example")[0] == 403
    for header in ({}, {"Authorization": "Bearer no"}, {"Authorization": SECRET}):
        assert ask(locked, "/v1/chat/completions", asked("Hi"), **header)[0] == 401
    assert content(ask(locked, "/v1/chat/completions", asked("Hi"), Authorization=f"Bearer {SECRET}"))
    assert ask(locked, "/health")[0] == ask(locked, "/")[0] == 200 and SECRET not in ask(locked, "/")[1]


def test_the_client_says_what_is_wrong(port, locked, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)

    def reads(talk):
        return "".join(talk.say("Hi")[0])

    with pytest.raises(UserError, match="refuses the key: set the environment variable ATTUNE_KEY"):
        reads(remote(locked))
    monkeypatch.setenv(KEY, SECRET)
    assert reads(remote(locked))
    with pytest.raises(UserError, match=r"refuses, status 400: .*pinned to 'sft-dpo'"):
        reads(remote(port, model="nobody"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="cannot be reached: `python -m attune serve sft-dpo` starts it"):
            reads(remote(free.getsockname()[1]))
    event = "data: " + json.dumps(
        {"id": "1", "object": "chat.completion.chunk", "choices": [{"delta": {"content": "a"}}]}
    )
    for text, sent, error in [
        (event + "\n\n" + " " * 99, len(event) + 2, "broke off"),
        ("data: {not json}\n\n", None, "sends no chat completion"),
        ('data: {"choices": [{}]}\n\n', None, "sends no chat completion"),
        ('data: {"error": {"message": "too long"}}\n\n', None, "refuses: too long"),
    ]:
        plan = lambda number, body, text=text, sent=sent: (200, text, sent)  # noqa: E731
        with serving(plan) as (_, url), pytest.raises(UserError, match=error):
            reads(Remote(url, "m", SETTINGS))
    with serving(lambda number, body: (500, completion("x"))) as (_, url), pytest.raises(UserError, match="refuses"):
        reads(Remote(url, "m", SETTINGS))


def test_a_conversation_with_an_endpoint(port):
    printed = [a if isinstance(a, str) else "".join(a) for a in answers(remote(port), ["Hi", "/new", "Hi", "/quit"])]
    assert printed[0] == printed[2] and printed[1] == "(a new conversation)"


def test_the_page_shows_the_notice_and_texts_alone(locked):
    with open_browser() as browser:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{locked}/")
        assert "A machine writes here, not a person" in page.inner_text("#notice")
        page.fill("#key", "wrong")
        page.fill("#text", HOSTILE)
        page.press("#text", "Enter")
        page.wait_for_function("document.getElementById('problem').textContent.includes('key')")
        page.fill("#key", SECRET)
        page.click("#send")
        page.wait_for_selector(".assistant")
        assert page.inner_text(".user") == f"you: {HOSTILE}" and page.title() == "Talk to sft-dpo"
        assert page.inner_text("#problem") == "" and "sft-dpo (a machine):" in page.inner_text(".assistant")
        page.click("#new")
        assert page.inner_text("#turns") == ""


def test_what_cannot_be_served(run, tmp_path, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"127.0.0.1:{number} cannot be listened on .*choose another"):
            serve.main(["sft-dpo", "--port", number])
    for arguments, error in [
        (
            ["sft-dpo", "--host", "0.0.0.0"],
            "lets others connect, and they need a key: set the environ",
        ),
        (["sft-dpo", "--engine", "vllm"], "vllm is not installed"),
        (["sft"], "models/sft is missing"),
        (["nobody", "--port", "0"], "'nobody' is none of variants, nor a folder that"),
    ]:
        with pytest.raises(UserError, match=error):
            serve.main(arguments)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.json").write_text("{}")
    assert model_folder("../x", run, tmp_path, "fp32") == tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="x cannot be served: "):
        application("x", "cpu", None, [])


def test_vllm_gets_the_model_and_the_key(tmp_path, monkeypatch, capfd):
    """A stand-in of vLLM's server, which prints what it is given."""
    (tmp_path / "vllm/entrypoints/openai").mkdir(parents=True)
    (tmp_path / "vllm/entrypoints/openai/api_server.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.environ['VLLM_API_KEY'])\nsys.exit(3 if 'bad' in sys.argv else 0)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    serve_vllm(Path("/m/sft-dpo"), "127.0.0.1", 99, SECRET)
    printed = capfd.readouterr().out
    assert "'--model', '/m/sft-dpo', '--served-model-name', 'sft-dpo', '--host', '127.0.0.1', '--port', '99'" in printed
    assert f"] {SECRET}" in printed and f"'{SECRET}'" not in printed
    with pytest.raises(ModelError, match="vLLM ended with status 3"):
        serve_vllm(Path("/m/bad"), "127.0.0.1", 99, SECRET)


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c(run):
    """As somebody runs it: a variant that is exported on the way."""
    command = [sys.executable, "-m", "attune", "serve", "sft-dpo", "--port", "0"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        line = process.stdout.readline()
        assert line.startswith("sft-dpo: http://127.0.0.1:") and "/v1 (Ctrl-C ends)" in line, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and "Traceback" not in error
