"""Many people rate at once, and the server is killed while they do: no answer that was confirmed is lost or counted
twice. The server is the real one, in a separate process; the clients retry, as the page does.
"""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from json import dumps, loads

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT

from attune.report.ratings import Store

NAMES = ("sft", "sft-dpo")
CLIENTS = 50
BETTER = ("first", "tie", "second")


class Server:
    """`python -m attune rate` in a folder, on the same port after each start."""

    def __init__(self, folder, contexts):
        self.folder, self.process = folder, None
        shutil.copy(ROOT / "params.yaml", folder)
        for name in NAMES:
            rows = [
                {"id": f"test/{i}", "label": "sad", "context": [{"role": "user", "text": f"context {i}"}],
                 "reference": "", "reply": f"{name} says {i}"}
                for i in range(contexts)
            ]  # fmt: skip
            (folder / "data/replies").mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / f"data/replies/{name}.parquet")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def command(self, *more):
        return [sys.executable, "-m", "attune", "rate", *NAMES, *more]

    def start(self):
        self.process = subprocess.Popen(
            self.command("--port", str(self.port)),
            cwd=self.folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert "contexts: http://127.0.0.1" in self.process.stdout.readline()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


class Client:
    """A rater who answers every context, and retries whenever the connection breaks."""

    def __init__(self, rater, port, confirmed, told):
        self.rater, self.port, self.confirmed, self.told = rater, port, confirmed, told
        self.connection, self.retries = None, 0

    def asked(self, method, path, body=None):
        headers = {"Content-Type": "application/json"} if body else {}
        while True:
            try:
                self.connection = self.connection or HTTPConnection("127.0.0.1", self.port, timeout=60)
                self.connection.request(method, path, body and dumps(body), headers)
                response = self.connection.getresponse()
                status, content = response.status, response.read()
            except (OSError, HTTPException):
                self.connection.close()
                self.connection, self.retries = None, self.retries + 1
                # The server is being started again; another client's news, or a moment, is worth another try.
                self.told.wait(0.05)
                continue
            assert status == 200, content
            return loads(content)

    def rate(self):
        while item := self.asked("GET", f"/next?rater={self.rater}").get("item"):
            better = BETTER[sum(item["example"].encode() + self.rater.encode()) % 3]
            body = {"rater": self.rater, "example": item["example"], "hash": item["hash"], "better": better}
            assert self.asked("POST", "/answer", body) == {"kept": item["example"]}
            self.confirmed.append((self.rater, item["example"], better, item["replies"][0]))
        self.connection.close()
        return self.retries


def rated(folder, contexts, kills):
    """Let the clients rate all contexts while the server is killed `kills` times.

    Returns:
        What was confirmed: rater, example, what was better, and the reply that was shown first; how often a client
        asked again; and the server, which is stopped.
    """
    server, confirmed, told = Server(folder, contexts), [], threading.Event()
    server.start()
    clients = [Client(f"r{i}", server.port, confirmed, told) for i in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        done = [pool.submit(client.rate) for client in clients]
        for kill in range(kills):
            # Spread over the run; the clients are in the middle of their answers each time.
            while len(confirmed) < CLIENTS * contexts * (kill + 1) // (kills + 1) and not all(d.done() for d in done):
                told.wait(0.01)
            server.kill()
            server.start()
        retries = sum(each.result() for each in done)
    server.kill()
    return confirmed, retries, server


def lost_and_doubled(confirmed, server):
    """How many confirmed answers the store has not, or has with another choice; and how many rows are too many."""
    kept = Store(server.folder / "ratings/answers.sqlite").answers()
    choices = {(one.rater, one.example): (one.choice, one.first) for one in kept}
    lost = 0
    for rater, example, better, shown in confirmed:
        begun = "a" if shown.startswith(f"{NAMES[0]} says") else "b"
        chosen = {"first": begun, "second": "ab"[begun == "a"], "tie": "tie"}[better]
        lost += choices.get((rater, example)) != (chosen, begun)
    return lost, len(kept) - len({(rater, example) for rater, example, _, _ in confirmed})


@pytest.mark.parametrize(
    ("contexts", "kills"),
    [pytest.param(20, 2, id="1000"), pytest.param(200, 3, id="10000", marks=pytest.mark.campaign)],
)
def test_fifty_at_once_and_a_killed_server_lose_no_answer(contexts, kills, tmp_path, recorded):
    confirmed, retries, server = rated(tmp_path, contexts, kills)
    assert Counter(rater for rater, *_ in confirmed) == {f"r{i}": contexts for i in range(CLIENTS)}
    lost, doubled = lost_and_doubled(confirmed, server)
    # Otherwise no rater notices the kills.
    assert retries >= kills
    subprocess.run(
        server.command("--export", "out.csv"), cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
    )
    with (tmp_path / "out.csv").open(newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == CLIENTS * contexts
    what = f"answers of {CLIENTS} raters at once, the server killed {kills} times: lost"
    recorded("load", [
        {"what": what, "cases": len(confirmed), "failures": lost},
        {"what": "the same: counted twice", "cases": len(confirmed), "failures": doubled},
    ])  # fmt: skip
    assert (lost, doubled) == (0, 0)
