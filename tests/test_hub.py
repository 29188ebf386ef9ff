"""Data sets of the hub: what is downloaded, what is taken from the cache, and what is refused."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread

import datasets
import factory
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RevisionResolutionError

from attune.corpora.readers.messages import USUAL, read
from attune.download.hub import from_hub
from attune.pairs.preference_files import hub_parts
from attune.runtime.errors import DataError, DownloadError, ModelError
from attune.runtime.hub import hub_errors

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
PAIR = {"prompt": "I lost my dog.", "chosen": "I am sorry!", "rejected": "So what?"}
CHATS = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Oh."}], "label": 0}


def parquet(*rows):
    pq.write_table(pa.Table.from_pylist(list(rows)), sink := BytesIO())
    return sink.getvalue()


def card(**files):
    """A card with a configuration for each name, and its file of the split train."""
    lines = [
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: '{path}'" for name, path in files.items()
    ]
    return "\n".join(["---", "configs:", *lines, "---", ""]).encode()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))

    def put(hub_id, files):
        """A commit of a data set in the hub's cache, which is that of main."""
        repository = tmp_path / f"hub/datasets--{hub_id.replace('/', '--')}"
        paths = {f"snapshots/{COMMIT}/{name}": content for name, content in files.items()}
        for name, content in (paths | {"refs/main": COMMIT.encode()}).items():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_bytes(content)

    return put


def pairs(hub_id="me/one", revision=COMMIT, **changes):
    train, test = hub_parts(hub_id, factory.pair_file(hub_id=hub_id, revision=revision, **changes))
    return list(train), None if test is None else list(test)


def test_chats_come_from_the_cache_with_their_commit(cache, tmp_path):
    table = datasets.Dataset.from_list([CHATS] * 4)
    table = table.cast_column("label", datasets.ClassLabel(names=["sad", "joyful"]))
    table.to_parquet(content := BytesIO())
    cache("me/chats", {f"data/{split}-00000-of-00001.parquet": content.getvalue() for split in ("train_sft", "test")})
    settings = replace(USUAL, hub_id="me/chats", splits={"train_sft": "train", "test": "test"})
    (target := tmp_path / "raw").mkdir()
    origins = from_hub(settings, target)
    assert origins == {f"{name}.parquet": f"hf://datasets/me/chats@{COMMIT}" for name in settings.splits}
    dialogues, _ = read(target, messages=settings)
    assert {d.label for d in dialogues} == {"sad"} and Counter(d.split for d in dialogues)["test"] == 4
    with pytest.raises(DownloadError, match="has no split valid: it has test, train_sft"):
        from_hub(replace(settings, splits={"valid": "valid"}), target)
    with pytest.raises(DownloadError, match=r"'some/other' at revision 'main' cannot be had: Cannot resolve revision"):
        from_hub(replace(settings, hub_id="some/other"), target)


def test_pairs_come_from_the_cache_at_their_commit(cache):
    files = {"data/train-00000-of-00001.parquet": parquet(PAIR, PAIR), "README.md": b""}
    cache("me/one", files | {"data/test-00000-of-00001.parquet": parquet(PAIR)})
    train, test = pairs()
    assert train == [(f"me/one, split train, row {n}", PAIR) for n in (1, 2)] and len(test) == 1
    with pytest.raises(DataError, match=rf"pairs\.file\.hub_id = 'me/one' at revision '{OTHER}' cannot be had: "):
        pairs(revision=OTHER)
    with pytest.raises(DataError, match="has no split other: it has train, test"):
        pairs(train="other")
    with pytest.raises(DataError, match=r"hub_id = '/one' at revision .* cannot be had: Repo id must"):
        pairs("/one")


def test_a_configuration_needs_its_own_files_alone(cache):
    configurations = card(all="all/*.parquet", small="**/small-*.jsonl")
    cache("me/one", {"README.md": configurations, "b/small-1.jsonl": json.dumps(PAIR).encode()})
    assert pairs(subset="small") == ([("me/one, split train, row 1", PAIR)], None)
    for subset in (None, "large"):
        with pytest.raises(DataError, match=r"has the configurations all, small: name one as pairs\.file\.subset"):
            pairs(subset=subset)


OUTSIDE = ["http://127.0.0.1:9/a.jsonl", "/etc/a.jsonl", "data/../../a.jsonl", "zip://a.jsonl::b.zip"]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_a_file_outside_is_not_read(name, path, cache):
    content = card(default=path)
    content = content if name == "README.md" else content.replace(b"---\n", b"")
    cache("me/one", {name: content, "train.jsonl": json.dumps(PAIR).encode()})
    with pytest.raises(DataError, match="names a file outside of the data set, '") as error:
        pairs()
    assert path in str(error.value)


def test_what_cannot_be_loaded_is_one_sentence_and_no_code_is_run(cache, tmp_path):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
    cases = {
        "script": {"script.py": code},
        "pickle": {"train.pkl": b"\x80\x04."},
        "empty": {"README.md": b""},
        "card": {"README.md": b"---\nconfigs: [a: {\n---\n", "train.jsonl": b"{}"},
        "shape": {"README.md": b"---\nconfigs: 3\n---\n", "train.jsonl": b"{}"},
        "list": {"README.md": b"---\nconfigs: [3]\n---\n", "train.jsonl": b"{}"},
        "number": {".huggingface.yaml": b"3", "train.jsonl": b"{}"},
        "yaml": {".huggingface.yaml": b"configs: [a: {", "train.jsonl": b"{}"},
        "broken": {"train.parquet": b"PAR1"},
    }
    for name, files in cases.items():
        cache(f"me/{name}", files)
        with pytest.raises(DataError) as error:
            pairs(f"me/{name}")
        assert "\n" not in str(error.value), name
    assert not (tmp_path / "ran").exists()
    cache("me/part", {"data/train-00000-of-00002.parquet": parquet(PAIR)})
    with pytest.raises(DataError, match="cannot be had: the hub's cache lacks data/train-00001-of-00002"):
        pairs("me/part")


FILES = {
    "README.md": card(default="data/train-*.parquet", other="other/*.parquet"),
    "data/train-0.parquet": parquet(PAIR),
    "data/train-1.parquet": parquet(PAIR),
    "other/a.parquet": parquet(PAIR),
    "run.py": b"",
}


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the hub with the data set me/one; yields the requests that it got."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            path = self.path.partition("?")[0]
            if path.startswith("/api/datasets/me/one/revision/"):
                content = json.dumps({"id": "me/one", "sha": COMMIT}).encode()
            elif path == f"/api/datasets/me/one/tree/{COMMIT}":
                listed = [{"type": "file", "path": k, "size": len(v), "oid": "0" * 40} for k, v in FILES.items()]
                content = json.dumps(listed).encode()
            else:
                content = FILES.get(path.removeprefix(f"/datasets/me/one/resolve/{COMMIT}/"))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", f'"{abs(hash(path))}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if content and self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield asked
        server.shutdown()
        thread.join()


def test_a_configuration_is_downloaded_once_and_a_part_of_it_is_refused(cache, hub, monkeypatch, tmp_path):
    assert len(pairs(revision="main")[0]) == 2
    read = {path for path in hub if "/resolve/" in path}
    assert {path.rpartition(COMMIT)[2] for path in read} == {f"/{name}" for name in FILES if name[0] in "Rd"}
    hub.clear()
    assert len(pairs()[0]) == 2 and hub == []
    folder = tmp_path / f"hub/datasets--me--one/snapshots/{COMMIT}"
    (folder / "data/train-1.parquet").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match=r"cannot be had: .*incomplete: 1 file\(s\) are missing \(data/train-1"):
            pairs()
    assert len(pairs()[0]) == 2
    shutil.rmtree(folder.parent)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"cannot be had: .*HF_HUB_OFFLINE=1 takes what the hub's cache has, and pairs"):
        pairs()


@pytest.mark.parametrize(
    ("address", "page"),
    [
        (
            "https://huggingface.co/google/gemma-7b-it/resolve/main/config.json",
            "https://huggingface.co/google/gemma-7b-it",
        ),
        ("https://huggingface.co/datasets/google/x/resolve/main/a.json", "https://huggingface.co/datasets/google/x"),
    ],
)
def test_a_gated_repository_is_a_sentence_with_the_page_to_visit(address, page):
    name = page.removeprefix("https://huggingface.co/").removeprefix("datasets/")
    answer = httpx2.Response(403, request=httpx2.Request("GET", address))
    gated = GatedRepoError(f"403 Client Error.\n\nCannot access gated repo for url {address}.", response=answer)
    for raised in (gated, RevisionResolutionError("Cannot resolve revision 'main'")):
        raised.__cause__ = None if raised is gated else gated
        said = re.escape(f"is gated: accept its terms at {page}, and export HF_TOKEN")
        asked = hub_errors(f"model.hub_id = '{name}' at revision 'main'", ModelError, "a folder")
        with pytest.raises(ModelError, match=said), asked:
            raise raised
