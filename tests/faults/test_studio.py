"""Curves with DVC_STUDIO_TOKEN set, before a server that counts what reaches it."""

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from helpers import ROOT, git

TRAIN = """
from pathlib import Path
from attune.training.common.curves import replay

live = replay([{"step": 1, "loss": 0.5}], Path("curves"))
live.next_step()
live.end()
"""


@pytest.fixture
def studio():
    """A server on the loopback interface, and the bodies that it got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_reaches_studio_unless_the_clone_asks_for_it(asked, studio, tmp_path, monkeypatch):
    url, got = studio
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    shutil.copytree(ROOT / ".dvc", ".dvc", ignore=lambda *_: ["cache", "tmp", "config.local"])
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    # As `dvc exp run` sets them for its stages.
    stage = {"DVC_EXP_BASELINE_REV": "0" * 40, "DVC_EXP_NAME": "one", "DVC_ROOT": str(tmp_path)}
    token = {"DVC_STUDIO_TOKEN": "secret", "DVC_STUDIO_URL": url, "DVC_STUDIO_REPO_URL": "git@example.org:a/b"}
    if asked:
        command = [sys.executable, "-m", "dvc", "config", "--local", "studio.offline", "false"]
        subprocess.run(command, check=True)
    subprocess.run(
        [sys.executable, "-c", TRAIN], env=os.environ | stage | token | {"PYTHONPATH": str(ROOT)}, check=True
    )
    assert (tmp_path / "curves/plots/metrics/loss.tsv").is_file()
    assert bool(got) is asked
