"""Serve a variant by an OpenAI-compatible endpoint, with a page to talk to it.

    python -m attune serve sft-dpo        # http://127.0.0.1:8766/v1, and the page http://127.0.0.1:8766/
    python -m attune serve my_model       # a folder that `python -m attune export` wrote
    python -m attune chat sft-dpo --endpoint http://127.0.0.1:8766/v1

The model is called as the variant or the folder. It is served by vLLM where that is installed, else by `transformers
serve`, of whose paths only chat completions and the list of models can be reached. Only this machine can connect; with
--host others can, who need a key: set the environment variable ATTUNE_KEY to a secret, which clients send as
`Authorization: Bearer …`. Ctrl-C ends.
"""

from __future__ import annotations

import hmac
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params
from attune.runtime.cli import command_parser
from attune.runtime.errors import ModelError, UserError, reason
from attune.tools.chat import quiet
from attune.tools.merged import require_mergeable, write_merged
from attune.tools.rate import HERE, LOOPBACK, Guard, own_names
from attune.tools.remote import KEY
from attune.tools.serve_page import POLICY, page

PORT = 8766
ENGINES = ("vllm", "transformers")
SERVED = {("GET", "/"), ("GET", "/v1/models"), ("GET", "/health"), ("POST", "/v1/chat/completions")}
OPEN = ("/", "/health")
"""Paths that need no key: they tell nothing of a conversation."""


class Door:
    """Middleware before `transformers serve`: the page, the served paths, and the key.

    The engine behind it also loads any model of the hub that a request names, and has no keys.
    """

    def __init__(self, app: Any, model: str, key: str | None) -> None:
        self.app, self.model, self.key = app, model, key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, refuse, or pass the request on."""
        from starlette.responses import HTMLResponse, JSONResponse

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        answer: Any = None
        if (scope["method"], path) not in SERVED:
            answer = JSONResponse({"error": {"message": f"{path} is not served"}}, 404)
        elif path not in OPEN and not self.admits(dict(scope["headers"]).get(b"authorization", b"")):
            answer = JSONResponse({"error": {"message": "the key is missing or wrong"}}, 401)
        elif path == "/":
            headers = {"Content-Security-Policy": POLICY, "X-Frame-Options": "DENY"}
            answer = HTMLResponse(page(self.model, self.key is not None), headers=headers)
        elif path == "/v1/models":
            known = {"id": self.model, "object": "model", "created": 0, "owned_by": "attune"}
            answer = JSONResponse({"object": "list", "data": [known]})
        await (answer or self.app)(scope, receive, send)

    def admits(self, sent: bytes) -> bool:
        """Whether the header Authorization has the key, if there is one."""
        return self.key is None or hmac.compare_digest(sent, f"Bearer {self.key}".encode())


def application(model: str, device: str, key: str | None, hosts: Sequence[str]) -> Any:
    """`transformers serve` for the model in the folder `model` of the working directory, behind `Guard` and `Door`.

    Args:
        model: its name, and the folder's.
        device: cpu or cuda.
        key: that clients must send; None: none.
        hosts: accepted values of the header Host, against DNS rebinding; empty: all.

    Raises:
        ModelError: the folder cannot be loaded.
    """
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import GenerationState

    class Chat(ChatCompletionHandler):  # type: ignore[misc,unused-ignore]
        """The engine's handler, where a temperature above 0 samples also if the model's own setting is greedy."""

        def _build_generation_config(self, body: dict[str, Any], *settings: Any, **others: Any) -> Any:
            made = super()._build_generation_config(body, *settings, **others)
            if body.get("temperature"):
                made.do_sample = True
            return made

    try:
        manager = ModelManager(device=device, dtype="auto", force_model=model)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{model} cannot be served: {reason(error)}") from None
    state = GenerationState()
    # `Door` refuses the paths of these handlers.
    others: Any = dict.fromkeys(
        ("completion_handler", "response_handler", "transcription_handler", "systemone_handler")
    )
    app = build_server(manager, Chat(manager, state), generation_state=state, **others)
    return Guard(Door(app, model, key), hosts)


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address, on which nothing is accepted yet.

    Raises:
        UserError: the address is taken or not this machine's.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UserError(
            f"{host}:{port} cannot be listened on ({reason(error)}): choose another --host or --port"
        ) from None
    return bound


def model_folder(what: str, params: Params, temporary: Path, dtype: str) -> Path:
    """The folder with the model to serve: `what`, or the merged weights of variant `what`, written below `temporary`.

    Raises:
        UserError, ModelError: it is neither a folder of a model nor a variant, or as `write_merged`.
    """
    if what not in params.variants and (Path(what) / "config.json").is_file():
        return Path(what).resolve()
    named(params.variants, what, "variants, nor a folder that `python -m attune export` wrote; the variants are")
    folder = temporary / what
    write_merged(what, params, folder, dtype)
    return folder


def serve_transformers(
    folder: Path, params: Params, bound: socket.socket, key: str | None, hosts: Sequence[str]
) -> None:
    """Serve until Ctrl-C by `transformers serve`."""
    import uvicorn

    from attune.compute.process import set_up_process

    set_up_process(params.hardware)
    quiet()
    # The engine calls a model as the folder that it is asked to load.
    with chdir(folder.parent):
        app = application(folder.name, params.hardware.device, key, hosts)
    told(folder.name, *bound.getsockname()[:2])
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[bound])


def serve_vllm(folder: Path, host: str, port: int, key: str | None) -> None:
    """Serve until Ctrl-C by vLLM, in a process of its own; it reads the key from the environment.

    Raises:
        ModelError: it ends by itself.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", folder.name, "--host", host, "--port", str(port)]
    told(folder.name, host, port)
    done = subprocess.run(command, env=os.environ | ({"VLLM_API_KEY": key} if key else {}), check=False)
    if done.returncode:
        raise ModelError(f"vLLM ended with status {done.returncode}; its lines above say why (--engine transformers?)")


def told(model: str, host: str, port: int) -> None:
    """Print where the model is."""
    where = f"[{host}]" if ":" in host else host
    print(f"{model}: http://{where}:{port}/v1 (Ctrl-C ends)", flush=True)


def main(argv: Sequence[str]) -> None:
    """Serve until Ctrl-C."""
    parser = command_parser("serve", __doc__)
    parser.add_argument("what", help="a key of variants, or a folder that `export` wrote")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; default: this machine only")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument("--engine", choices=ENGINES, help="default: vllm where it is installed, else transformers")
    arguments = parser.parse_args(argv)
    host, port, key = arguments.host, arguments.port, os.environ.get(KEY) or None
    engine = arguments.engine or next(name for name in ENGINES if find_spec(name))
    if find_spec(engine) is None:
        raise UserError(f"{engine} is not installed: leave --engine out, or install it as docs/scale.md says")
    if engine == "transformers" and find_spec("fastapi") is None:
        raise UserError("`transformers serve` needs fastapi, which is not installed: run `make setup`")
    if host not in HERE and key is None:
        raise UserError(f"--host {host} lets others connect, and they need a key: set the environment variable {KEY}")
    params = load()
    if arguments.what in params.variants:
        require_mergeable(arguments.what, params)
    hardware = params.hardware
    dtype = "bf16" if (hardware.device, hardware.precision) == ("cuda", "bf16") else "fp32"
    bound = listening(host, port)
    with TemporaryDirectory(prefix="attune-serve-") as temporary, bound:
        print(f"loading {arguments.what} …", file=sys.stderr, flush=True)
        folder = model_folder(arguments.what, params, Path(temporary), dtype)
        # That of port 0 is known only now.
        port = bound.getsockname()[1]
        if engine == "vllm":
            bound.close()
            serve_vllm(folder, host, port, key)
        else:
            serve_transformers(folder, params, bound, key, own_names(host, port))
