"""llama.cpp's server, as a peer of stage `generate`: the program that `LLAMA_SERVER` names, on a GGUF file.

The package index has it as source only, in that of `llama-cpp-python` (`vendor/llama.cpp`):

    cmake -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF -DLLAMA_OPENSSL=OFF
    cmake --build build --target llama-server
    LLAMA_SERVER=build/bin/llama-server python -m benchmarks.generate llama-server
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError, URLError

from openai import OpenAI

from attune.runtime.errors import UserError
from benchmarks.measure import peak

VARIABLE = "LLAMA_SERVER"
# Seconds that loading the model, or an answer, may take.
PATIENCE = 60


class LlamaServer:
    """A server that ends with this process, and answers `slots` prompts of at most `room` tokens at a time.

    Raises:
        UserError: `LLAMA_SERVER` names no program, or the server does not start.
    """

    def __init__(self, gguf: Path, slots: int, room: int, threads: int) -> None:
        program = os.environ.get(VARIABLE)
        if program is None or not Path(program).is_file():
            raise UserError(
                f"{VARIABLE}={program or ''} names no program: benchmarks/llama_server.py says how it is built"
            )
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.url, self.pool = f"http://127.0.0.1:{port}", ThreadPoolExecutor(slots)
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=PATIENCE)
        options = {"model": gguf, "port": port, "parallel": slots, "ctx-size": slots * room, "threads": threads}
        command = [program, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(self.process.terminate)
        until = time.monotonic() + PATIENCE
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > until:
                raise UserError(f"{' '.join(command)} did not start: run it to see why")
            time.sleep(0.1)

    def ready(self) -> bool:
        """Whether the model is loaded."""
        try:
            with urllib.request.urlopen(f"{self.url}/health"):
                return True
        except (HTTPError, URLError):
            return False

    def answers(self, prompts: Sequence[list[int]], longest: int) -> list[str]:
        """Greedy replies of at most `longest` tokens, in the order of the prompts."""
        return list(self.pool.map(lambda ids: self._answer(ids, longest), prompts))

    def peak(self) -> int:
        """The most MiB that the server has held."""
        return peak(self.process.pid)

    def _answer(self, ids: list[int], longest: int) -> str:
        done = self.client.completions.create(model="", prompt=ids, max_tokens=longest, temperature=0)
        return done.choices[0].text.strip()
