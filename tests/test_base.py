"""Stage `base`: a small model is deterministic, and a hub model is pinned to a commit and not copied."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import factory
import pytest
from helpers import ROOT

from attune.data.dialogue import Turn
from attune.models.base_record import origin
from attune.models.loading import load_base, load_tokenizer
from attune.models.tiny import train_tokenizer
from attune.models.weights import commit
from attune.runtime.errors import DataError, ModelError
from attune.runtime.io import write_json
from attune.training.pretraining.pretrain import packed_sequences, pretrain
from stages import base as base_stage

HARDWARE = factory.hardware()
MADE = factory.model()
TINY = factory.tiny(layers=1, max_positions=64, learning_rate=1e-2, max_length=16)
DIALOGUES = [
    (Turn("user", f"i saw {n} dogs today"), Turn("assistant", f"wow {n} dogs that is a lot")) for n in range(40)
]


def make(folder: Path, seed: int) -> Path:
    model, tokenizer = pretrain(DIALOGUES, MADE, TINY, HARDWARE, seed, folder / "checkpoints", folder / "curves")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    write_json(folder / "base/base.json", {"name": "t", "source": "made"})
    return folder / "base"


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_same_seed_same_weights_and_no_pickle(tmp_path, monkeypatch):
    first, again, other = (make(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert weights(first) == weights(again) != weights(other)
    assert (first / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert {path.suffix for path in first.iterdir()} <= {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize(
    ("architecture", "model_type"), [("llama", "llama"), ("mistral", "mistral"), ("gemma", "gemma")]
)
def test_architectures_differ_as_the_originals_do(tmp_path, monkeypatch, architecture, model_type):
    import torch

    monkeypatch.setattr(sys.modules[__name__], "TINY", replace(TINY, architecture=architecture))
    model = load_base(make(tmp_path, 1), HARDWARE).eval()
    assert model.config.model_type == model_type
    ids = torch.arange(5, 5 + 60)[None]
    moved = ids.clone()
    moved[0, 0] += 100
    with torch.no_grad():
        difference = (model(moved).logits - model(ids).logits).abs().amax(-1)
        embedded = model.get_input_embeddings().weight[ids]
        entered = model(ids, output_hidden_states=True).hidden_states[0]
    first, last = difference[0, [0, -1]].tolist()
    assert first > 0
    # One layer sees half of 64 positions under Mistral's window, and everything without it.
    assert (last == 0) is (architecture == "mistral")
    scale = TINY.hidden_size**0.5 if architecture == "gemma" else 1
    torch.testing.assert_close(entered, embedded * scale)


def test_model_loads_with_its_chat_template(tmp_path, monkeypatch):
    folder = make(tmp_path, 1)
    assert origin(folder) == (str(folder), None)
    assert load_base(folder, HARDWARE).config.vocab_size == len(load_tokenizer(folder))
    assert "{% generation %}" in load_tokenizer(folder).chat_template


def test_pretraining_lowers_the_loss(tmp_path, monkeypatch):
    make(tmp_path, 1)
    rows = (tmp_path / "curves/plots/metrics/loss.tsv").read_text().splitlines()[1:]
    losses = [float(row.split("\t")[1]) for row in rows]
    assert losses[-1] < losses[0] - 0.5


def test_packed_sequences_are_full_and_in_order():
    tokenizer = train_tokenizer((t.text for turns in DIALOGUES for t in turns), 400, 64)
    sequences = packed_sequences(tokenizer, DIALOGUES, 16)
    assert {len(sequence["input_ids"]) for sequence in sequences} == {16}
    text = tokenizer.decode([token for sequence in sequences for token in sequence["input_ids"]])
    assert text.startswith(
        "<s><|user|>i saw 0 dogs today<|assistant|>wow 0 dogs that is a lot</s><s><|user|>i saw 1 dogs"
    )
    assert all(sequence["labels"] == sequence["input_ids"] for sequence in sequences)


def test_too_short_corpus(tmp_path):
    with pytest.raises(ModelError, match=r"tiny\.corpus = 'sample' is shorter than tiny\.max_length = 16"):
        pretrain([(Turn("user", "hi"),)], MADE, TINY, HARDWARE, 1, tmp_path, tmp_path)


def test_jsonl_corpus_and_its_malformed_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(base_stage, "RAW", tmp_path)
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine/dialogues.jsonl"
    file.write_text('{"source": "x", "turns": ["hello", "hi 😀"]}\n', encoding="utf-8")
    assert list(base_stage.pretraining_dialogues("mine")) == [(Turn("user", "hello"), Turn("assistant", "hi 😀"))]
    for broken in ('{"turns": 3}', "{", '{"text": []}'):
        file.write_text('{"turns": ["a", "b"]}\n' + broken + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"dialogues\.jsonl:2: expected"):
            list(base_stage.pretraining_dialogues("mine"))


class Hub(BaseHTTPRequestHandler):
    """A hub with a single model, `some/model`, whose branch `main` is at `COMMIT`; `paths` are the requested paths."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.paths.append(path)
        file = self.server.folder / path.rpartition("/")[2]
        if path.startswith("/api/models/some/model"):
            files = [
                {"type": "file", "path": one.name, "rfilename": one.name, "size": one.stat().st_size, "oid": "0" * 40}
                for one in self.server.folder.iterdir()
            ]
            info = {"id": "some/model", "sha": COMMIT, "siblings": files}
            answer = files if "/tree/" in path else info
            self.answer(200, json.dumps(answer).encode(), Content_Type="application/json")
        elif path.startswith(f"/some/model/resolve/{COMMIT}/") and file.is_file():
            body = file.read_bytes()
            self.answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(404, X_Repo_Commit=COMMIT, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


COMMIT = "0123456789abcdef0123456789abcdef01234567"
FROM_HUB = """
import json, sys
from dataclasses import replace
from pathlib import Path
from stages.base import main
from attune.models.base_record import origin
from attune.models.loading import load_base, load_tokenizer
from attune.config.params import load

params = load(Path(sys.argv[1]))
model = replace(params.model, name="some", source="hub", hub_id="some/model", sha256=None)
main(replace(params, model=model))
base = Path("models/base")
model = load_base(base, replace(params.hardware, device="cpu", dtype="fp32", threads=1))
print(json.dumps([origin(base), model.config.vocab_size, len(load_tokenizer(base))]))
"""


def test_hub_model_is_pinned_to_its_commit(tmp_path, monkeypatch):
    """Against a hub on loopback, in another process, since huggingface_hub reads HF_ENDPOINT at import."""
    size = len(load_tokenizer(make(tmp_path, 1)))
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    hub.folder, hub.paths, hub.daemon_threads = tmp_path / "base", [], True
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    more = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    more |= {"PYTHONPATH": str(ROOT), "TRANSFORMERS_OFFLINE": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", FROM_HUB, str(ROOT / "params.yaml")], cwd=tmp_path, env=os.environ | more,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        hub.shutdown()
        hub.server_close()
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "models/base/base.json").read_text())
    assert record == {"name": "some", "source": "hub", "hub_id": "some/model", "revision": "main", "commit": COMMIT}
    assert [path.name for path in (tmp_path / "models/base").iterdir()] == ["base.json"]
    assert json.loads(done.stdout.splitlines()[-1]) == [["some/model", COMMIT], size, size]
    files = [path for path in hub.paths if "/resolve/" in path]
    # The branch is requested once, to resolve it: a later commit on it does not change what is loaded.
    assert f"/some/model/resolve/{COMMIT}/model.safetensors" in files
    assert all(path.startswith(f"/some/model/resolve/{COMMIT}/") for path in files)
    assert [path for path in hub.paths if "main" in path] == ["/api/models/some/model/revision/main"]


def test_unreachable_hub():
    """Tests run offline (conftest): the hub refuses at once, as it would without a network."""
    with pytest.raises(ModelError, match=r"model\.hub_id = 'a/b' at revision 'main' cannot be had: .*HF_HUB_OFFLINE"):
        commit(factory.model(name="b", source="hub", hub_id="a/b", revision="main"), "model")


def test_missing_gpu(tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder = make(tmp_path, 1)
    with pytest.raises(ModelError, match=r"compute\.device = 'cuda', but no GPU is visible"):
        load_base(folder, factory.hardware(device="cuda", dtype="bf16"))
