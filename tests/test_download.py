"""Stage `download`: real files, real archives, and a real server on this machine."""

import hashlib
import io
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import git

from attune.download import fetch
from attune.download.sources import load
from attune.download.tracked import in_experiment, own_paths, untracked
from attune.runtime.errors import DataError, DownloadError
from stages import download as stage
from stages.download import download, local_folder, write_manifest

ROOT = Path(__file__).resolve().parents[1]
TEXT = b"one,two\n1,2\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server:
    """Serves a folder on a free port and records the requests."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(folder))

            def do_GET(self):
                asked.append(self.path)
                if not self.path.startswith("/cut/"):
                    return super().do_GET()
                # A connection that breaks: more is promised than comes.
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(TEXT)
                self.close_connection = True

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "www"
    folder.mkdir()
    running = Server(folder)
    yield running
    running.stop()


class Project:
    """The places of a run below one folder."""

    def __init__(self, root: Path):
        self.root = root
        self.raw, self.first_use, self.cache = root / "data/raw", root / "data/first_use.json", root / "cache"
        (root / "data").mkdir()

    def sources(self, text: str):
        path = self.root / "sources.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path)

    def run(self, sources, *corpora, local_dir=None):
        return download(corpora or ["toy"], self.raw, local_dir, sources, self.first_use, self.cache)

    def files(self) -> dict[str, bytes]:
        """Everything below data/, so that nothing half-written goes unseen."""
        data = self.root / "data"
        return {p.relative_to(data).as_posix(): p.read_bytes() for p in data.rglob("*") if p.is_file()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    return Project(tmp_path)


def single(url: str | None, pinned: str | None, file: str = "a.csv") -> str:
    entry = json.dumps({"file": file, "url": url, "sha256": pinned})
    return f"toy: {{licence: CC0, homepage: null, citation: none, files: [{entry}]}}\n"


def archived(url: str, pinned: str | None, members: str, folder: str = "top", count: str = "null") -> str:
    entry = f"{{url: '{url}', sha256: {json.dumps(pinned)}, folder: '{folder}', members: {members}, count: {count}}}"
    return f"toy: {{licence: CC0, homepage: null, citation: none, archives: [{entry}]}}\n"


def tar_of(path: Path, members: dict[str, bytes | str]) -> Path:
    """A tar whose names are taken as they are; text is the target of a symbolic link."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, members: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if isinstance(content, str):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            zipped.writestr(info, content)
    return path


# Single files


def test_file_with_pinned_hash_is_fetched_and_described(server, project):
    (server.folder / "a.csv").write_bytes(TEXT)
    manifest = project.run(project.sources(single(f"{server.url}/a.csv", sha256(TEXT), "sub/a.csv")))
    assert project.files() == {"raw/toy/sub/a.csv": TEXT}
    (entry,) = manifest
    assert (entry.corpus, entry.file, entry.origin) == ("toy", "sub/a.csv", f"{server.url}/a.csv")
    assert (entry.bytes, entry.sha256, entry.licence) == (len(TEXT), sha256(TEXT), "CC0")


def test_wrong_hash_keeps_nothing_and_names_both(server, project):
    (server.folder / "a.csv").write_bytes(TEXT)
    expected = sha256(b"other")
    with pytest.raises(DownloadError) as error:
        project.run(project.sources(single(f"{server.url}/a.csv", expected)))
    assert expected in str(error.value) and sha256(TEXT) in str(error.value)
    assert project.files() == {}
    assert [path for path in project.cache.rglob("*") if path.is_file()] == []


def test_first_use_is_recorded_then_compared(server, project):
    sources = project.sources(single(f"{server.url}/a.csv", None))
    (server.folder / "a.csv").write_bytes(TEXT)
    project.run(sources)
    assert json.loads(project.first_use.read_text()) == {f"{server.url}/a.csv": sha256(TEXT)}
    before = project.files()

    (server.folder / "a.csv").write_bytes(b"changed")
    for cached in project.cache.iterdir():
        cached.unlink()
    with pytest.raises(DownloadError, match="has changed since its first use") as error:
        project.run(sources)
    assert sha256(TEXT) in str(error.value) and sha256(b"changed") in str(error.value)
    assert "To accept the change" in str(error.value)
    assert project.files() == before

    project.first_use.write_text(json.dumps({f"{server.url}/a.csv": sha256(b"changed")}))
    project.run(sources)
    assert (project.raw / "toy/a.csv").read_bytes() == b"changed"


def test_damaged_cache_is_fetched_again(server, project):
    sources = project.sources(single(f"{server.url}/a.csv", sha256(TEXT)))
    (server.folder / "a.csv").write_bytes(TEXT)
    project.run(sources)
    (cached,) = project.cache.iterdir()
    cached.write_bytes(TEXT[:3])
    project.run(sources)
    assert (project.raw / "toy/a.csv").read_bytes() == TEXT
    assert len(server.asked) == 2


@pytest.mark.parametrize("pinned", [None, sha256(TEXT)])
def test_broken_connection_is_never_a_whole_file(server, project, pinned):
    with pytest.raises(DownloadError, match=r"toy/a\.csv: .*/cut/a\.csv cannot be downloaded"):
        project.run(project.sources(single(f"{server.url}/cut/a.csv", pinned)))
    assert project.files() == {}
    assert [path for path in project.cache.rglob("*") if path.is_file()] == []


def test_refused_connection_says_what_to_put_where(project, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.csv"
    with pytest.raises(DownloadError) as error:
        project.run(project.sources(single(url, None)))
    message = str(error.value)
    assert url in message and "<CORPORA_DIR>/toy/a.csv" in message and "corpus.local_dir" in message
    assert "\n" not in message and project.files() == {}


def test_http_error_names_status_and_address(server, project):
    with pytest.raises(DownloadError, match="404 Client Error") as error:
        project.run(project.sources(single(f"{server.url}/none.csv", None)))
    assert f"{server.url}/none.csv" in str(error.value) and project.files() == {}


def test_failure_of_one_corpus_leaves_the_old_files(server, project):
    good = single(f"{server.url}/a.csv", sha256(TEXT))
    bad = good.replace("toy:", "bad:").replace("/a.csv", "/none.csv")
    (server.folder / "a.csv").write_bytes(TEXT)
    project.run(project.sources(good))
    before = project.files()
    with pytest.raises(DownloadError):
        project.run(project.sources(good + bad), "toy", "bad")
    assert project.files() == before


def test_no_public_source_is_said_before_anything_is_fetched(server, project):
    (server.folder / "a.csv").write_bytes(TEXT)
    sources = project.sources(single(f"{server.url}/a.csv", None)) | load(ROOT / "data/sources.yaml")
    with pytest.raises(DownloadError, match=r"pretrain/dialogues.jsonl has no public source.*tiny.corpus=sample"):
        project.run(sources, "toy", "pretrain")
    with pytest.raises(DownloadError, match=r"'mine' is not in data/sources.yaml.*<CORPORA_DIR>/mine"):
        project.run(sources, "toy", "mine")
    assert server.asked == []


# Archives


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_wanted_members_are_taken(server, project, pack):
    members = {"top/dev/x_dev.csv": b"x", "top/dev/._x_dev.csv": b"?", "top/dev/y_dev.csv": b"y", "top/val/z.csv": b"z"}
    packed = pack(server.folder / "p", {**members, "top/train.csv": TEXT, "other/train.csv": b"no"})
    url = f"{server.url}/p"
    text = archived(url, sha256(packed.read_bytes()), "['dev/*_dev.csv', train.csv]", count="3")
    manifest = project.run(project.sources(text))
    assert project.files() == {"raw/toy/dev/x_dev.csv": b"x", "raw/toy/dev/y_dev.csv": b"y", "raw/toy/train.csv": TEXT}
    assert [entry.file for entry in manifest] == ["dev/x_dev.csv", "dev/y_dev.csv", "train.csv"]
    assert {entry.origin for entry in manifest} == {url}


def test_cached_archive_needs_no_server(server, project):
    packed = tar_of(server.folder / "p.tar.gz", {"./top/a.csv": TEXT})
    sources = project.sources(archived(f"{server.url}/p.tar.gz", sha256(packed.read_bytes()), "[a.csv]"))
    first = project.run(sources)
    server.stop()
    assert project.run(sources) == first
    assert server.asked == ["/p.tar.gz"]


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_hostile_archive_writes_nothing_outside(server, project, tmp_path, pack):
    outside = tmp_path / "outside"
    outside.mkdir()
    hostile = {
        "../evil": b"1",
        "../../evil": b"1",
        "top/../../../evil": b"1",
        str(outside / "evil"): b"1",
        "link": str(outside),
        "link/evil": b"1",
        "top/evil": str(outside / "evil"),
        "evil": b"plain",
    }
    packed = pack(server.folder / "p", hostile)
    # Patterns that would take each of them, if names were not looked at first.
    patterns = ["*", ".*/*", ".*/.*/*", "*/.*/.*/.*/*", "/".join("*" * len((outside / "evil").parts))]
    text = archived(f"{server.url}/p", sha256(packed.read_bytes()), json.dumps(patterns), folder="")
    with pytest.raises(DownloadError, match="holds no plain file"):
        project.run(project.sources(text))
    assert project.files() == {}
    text = archived(f"{server.url}/p", sha256(packed.read_bytes()), "['*', '*/*']", folder="")
    project.run(project.sources(text))
    # The plain names, as plain files: the link itself is never made, so nothing is written through it.
    assert project.files() == {"raw/toy/evil": b"plain", "raw/toy/link/evil": b"1"}
    assert list(outside.iterdir()) == []
    assert [path for path in tmp_path.rglob("evil") if project.raw not in path.parents] == []
    assert not any(path.is_symlink() for path in project.raw.rglob("*"))


def test_wanted_link_is_no_plain_file(server, project, tmp_path):
    (tmp_path / "secret").write_text("secret")
    packed = tar_of(server.folder / "p", {"top/a.csv": str(tmp_path / "secret")})
    with pytest.raises(DownloadError, match=r"holds no plain file top/a\.csv"):
        project.run(project.sources(archived(f"{server.url}/p", sha256(packed.read_bytes()), "[a.csv]")))
    assert project.files() == {}


def test_wrong_number_of_members_is_an_error(server, project):
    tar_of(server.folder / "p", {"top/x.csv": b"x"})
    with pytest.raises(DownloadError, match=r"holds 1 files .* counts 2"):
        project.run(project.sources(archived(f"{server.url}/p", None, "['*.csv']", count="2")))
    assert project.files() == {}


def test_error_page_instead_of_an_archive_is_forgotten(server, project):
    sources = project.sources(archived(f"{server.url}/p", None, "[a.csv]"))
    (server.folder / "p").write_bytes(b"<html>try later</html>")
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        project.run(sources)
    assert project.files() == {}
    packed = tar_of(server.folder / "p", {"top/a.csv": TEXT})
    project.run(sources)
    assert json.loads(project.first_use.read_text()) == {f"{server.url}/p": sha256(packed.read_bytes())}


# Local folders


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_local_files_are_copied(project, tmp_path):
    local = put(tmp_path / "local", {"toy/a.csv": TEXT, "toy/more.csv": b"not asked for"})
    (local / "toy/a.csv").chmod(0o444)
    (entry,) = project.run(project.sources(single("https://example.org/a.csv", sha256(TEXT))), local_dir=local)
    assert (entry.origin, entry.sha256) == ("local", sha256(TEXT))
    assert project.files() == {"raw/toy/a.csv": TEXT}
    assert os.access(project.raw / "toy/a.csv", os.W_OK)
    assert (project.raw / "toy/a.csv").stat().st_mode & stat.S_IWUSR


def test_local_pinned_mismatch_keeps_nothing_and_names_both(project, tmp_path):
    local = put(tmp_path / "local", {"toy/a.csv": TEXT})
    expected = sha256(b"other")
    with pytest.raises(DownloadError) as error:
        project.run(project.sources(single("https://example.org/a.csv", expected)), local_dir=local)
    assert expected in str(error.value) and sha256(TEXT) in str(error.value)
    assert project.files() == {}


def test_local_members_of_an_archive_need_no_archive(project, tmp_path):
    local = put(tmp_path / "local", {"toy/dev/x.csv": b"x", "toy/dev/.y.csv": b"y", "toy/train.csv": TEXT})
    text = archived("https://example.org/p", sha256(b"the archive"), "['dev/*.csv', train.csv]", count="2")
    manifest = project.run(project.sources(text), local_dir=local)
    assert [(entry.file, entry.origin) for entry in manifest] == [("dev/x.csv", "local"), ("train.csv", "local")]


@pytest.mark.parametrize("kept, missing", [("train.csv", "dev/*.csv"), ("dev/x.csv", "train.csv")])
def test_missing_local_file_is_named_with_its_folder(project, tmp_path, kept, missing):
    local = put(tmp_path / "local", {f"toy/{kept}": TEXT})
    with pytest.raises(DownloadError) as error:
        sources = project.sources(archived("https://example.org/p", None, "['dev/*.csv', train.csv]"))
        project.run(sources, local_dir=local)
    assert f"{missing} is missing in {local / 'toy'}" in str(error.value)
    assert project.files() == {}


def test_missing_local_folder_is_an_error(project, tmp_path):
    with pytest.raises(DownloadError, match=r"nowhere.*does not exist"):
        project.run(project.sources(single(None, None)), local_dir=tmp_path / "nowhere")


def test_local_corpus_without_an_entry_is_taken_whole(project, tmp_path):
    local = put(
        tmp_path / "local", {"mine/b.txt": b"b", "mine/sub/a.txt": b"a", "mine/.hidden/c": b"c", "mine/.d": b"d"}
    )
    manifest = project.run({}, "mine", local_dir=local)
    assert [(entry.file, entry.licence) for entry in manifest] == [("b.txt", "not stated"), ("sub/a.txt", "not stated")]
    with pytest.raises(DownloadError, match=r"'other' is not in data/sources.yaml, and .*other holds no files"):
        project.run({}, "other", local_dir=local)


def test_local_folder_states_its_own_licence(project, tmp_path):
    local = put(tmp_path / "local", {"toy/a.csv": TEXT, "toy/LICENCE": b"CC BY 4.0\nmore\n"})
    (entry,) = project.run(project.sources(single("https://example.org/a.csv", None)), local_dir=local)
    assert entry.licence == "CC BY 4.0"


def test_corpus_name_cannot_leave_its_folder(project, tmp_path):
    with pytest.raises(DownloadError, match="no name of a folder"):
        project.run({}, "../toy", local_dir=put(tmp_path / "local", {"toy/a.csv": TEXT}))


# The manifest and main()


def test_manifest_is_the_same_to_the_byte_and_names_no_machine(project, tmp_path):
    local = put(tmp_path / "local", {"toy/b": b"b", "toy/a": b"a", "abc/z": b"z"})
    written = []
    for corpora in (["toy", "abc"], ["abc", "toy", "abc"]):
        write_manifest(project.run({}, *corpora, local_dir=local), tmp_path / "manifest.json")
        written.append((tmp_path / "manifest.json").read_bytes())
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]
    assert [(each["corpus"], each["file"]) for each in json.loads(written[0])] == [
        ("abc", "z"),
        ("toy", "a"),
        ("toy", "b"),
    ]


def test_params_win_over_the_environment():
    assert local_folder("there", {"CORPORA_DIR": "here"}) == (Path("there"), "corpus.local_dir")
    assert local_folder(None, {"CORPORA_DIR": "here"}) == (Path("here"), "CORPORA_DIR")
    assert local_folder(None, {"CORPORA_DIR": ""}) == (None, "data/sources.yaml")


def compose(folder: Path, *overrides: str) -> None:
    """Write params.yaml below `folder`, composed as the pipeline composes it."""
    from hydra import compose as compose_config
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        config = compose_config("config", overrides=list(overrides))
    OmegaConf.save(config, folder / "params.yaml", resolve=True)


def test_main_takes_what_the_params_name(tmp_path, monkeypatch, capsys):
    names = ("train.csv", "valid.csv", "test.csv")
    put(tmp_path / "mine", {f"empatheticdialogues/{name}": name.encode() for name in names})
    put(tmp_path / "mine", {"pretrain/dialogues.jsonl": b"{}\n"})
    put(tmp_path, {f"data/{name}.yaml": (ROOT / f"data/{name}.yaml").read_bytes() for name in ("sources", "licences")})
    scorers = ("epitome.data=data/sample/epitome", "mmlu.corpus=sample")
    compose(tmp_path, "recipe=empo", "model=tiny", "corpus.local_dir=mine", *scorers)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CORPORA_DIR", "elsewhere")
    stage.main()
    assert "from mine (corpus.local_dir)" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert [each["file"] for each in manifest] == ["test.csv", "train.csv", "valid.csv", "dialogues.jsonl"]
    assert (tmp_path / "data/raw/pretrain/dialogues.jsonl").read_bytes() == b"{}\n"


@pytest.mark.parametrize(
    "licence, overrides, message",
    [
        (b"My own\n", [], "corpus empatheticdialogues: licence 'My own' has no row in data/licences.yaml"),
        (b"CC0 1.0\n", ["corpus.licence=Secret"], "corpus empatheticdialogues: licence 'Secret' has no row"),
        (b"CC0 1.0\n", ["model.licence=Secret"], "model smollm2: licence 'Secret' has no row"),
        (b"My own\n", ["corpus.licence='CC0 1.0'"], None),
    ],
)
def test_a_licence_whose_terms_are_unknown_is_found_before_anything_is_written(
    licence, overrides, message, tmp_path, monkeypatch
):
    for name in ("sources", "licences"):
        put(tmp_path, {f"data/{name}.yaml": (ROOT / f"data/{name}.yaml").read_bytes()})
    files = {f"{name}.csv": b"x" for name in ("train", "valid", "test")} | {"LICENCE": licence}
    put(tmp_path / "mine/empatheticdialogues", files)
    compose(tmp_path, "corpus.local_dir=mine", *overrides)
    monkeypatch.chdir(tmp_path)
    if message is None:
        stage.main()
        manifest = json.loads((tmp_path / "data/manifest.json").read_text())
        assert {entry["licence"] for entry in manifest} == {"CC0 1.0"}
        return
    with pytest.raises(DataError, match=re.escape(message)):
        stage.main()
    assert not (tmp_path / "data/raw").exists() and not (tmp_path / "data/manifest.json").exists()


def test_a_folder_that_experiments_in_other_folders_would_not_find_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ["my_data/chats", "my_data/pairs.jsonl", str(tmp_path / "my_data"), "nowhere", "data/dialogues"]
    put(tmp_path, {"my_data/chats/a.jsonl": b"{}\n", "my_data/pairs.jsonl": b"", "data/dialogues/a.jsonl": b""})
    assert untracked(files) == []  # no Git, so no experiments
    git("init", "--quiet", ".")
    chats, pairs = untracked(files)
    assert "`dvc add my_data/chats` and `git add my_data/chats.dvc my_data/.gitignore`" in chats
    assert pairs.startswith("my_data/pairs.jsonl is tracked by neither")
    put(tmp_path, {"my_data/chats.dvc": b"outs: []\n"})
    git("add", "my_data/pairs.jsonl")
    assert untracked(files) == []


def test_the_files_of_a_user_are_those_that_the_params_name(tmp_path, monkeypatch):
    compose(tmp_path, "corpus=messages", "pairs.table=my_data/t.csv")
    monkeypatch.chdir(tmp_path)
    params = stage.load_params()
    assert own_paths(params) == ["my_data/messages", "my_data/t.csv", "data/sample/epitome"]


def test_in_the_copy_of_an_experiment_a_missing_folder_is_told_to_be_tracked(tmp_path, monkeypatch):
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    assert in_experiment(copy) and not in_experiment(tmp_path)
    monkeypatch.chdir(copy)
    with pytest.raises(DownloadError, match="where you started it, `dvc add my_data/chats` and `git add"):
        fetch.from_local(Path("my_data/chats"), None, copy / "raw")


def test_main_with_a_hub_model_needs_no_pretraining_corpus(tmp_path, monkeypatch):
    compose(tmp_path, "recipe=empo")
    monkeypatch.chdir(tmp_path)
    assert stage.needed(stage.load_params()) == ("empatheticdialogues", "epitome", "mmlu")


def test_main_takes_what_the_scorers_read_but_not_the_embedded_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compose(tmp_path)
    assert stage.needed(stage.load_params()) == ("empatheticdialogues",)
    compose(tmp_path, "epitome.data=data/raw/epitome")
    assert stage.needed(stage.load_params()) == ("empatheticdialogues", "epitome")


def test_main_says_one_sentence_and_exits_with_1(tmp_path):
    put(tmp_path, {"data/sources.yaml": (ROOT / "data/sources.yaml").read_bytes()})
    compose(tmp_path, "recipe=empo", "model=tiny")
    environment = {**os.environ, "CORPORA_DIR": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.download"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: pretrain/dialogues.jsonl has no public source")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data/raw").exists() and not (tmp_path / "data/manifest.json").exists()


def test_what_cannot_be_written_is_named_with_the_reason(server, project, tmp_path):
    (server.folder / "a.csv").write_bytes(TEXT)
    sources = project.sources(single(f"{server.url}/a.csv", None))
    local = put(tmp_path / "local", {"toy/a.csv": TEXT})
    # A file where a folder should be stops root too, which permissions do not.
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"file/raw cannot be written: .*file"):
        download(["toy"], tmp_path / "file/raw", local, sources, project.first_use, project.cache)
    with pytest.raises(DownloadError, match=r"a\.csv cannot be stored in .*/file/cache: .*directory"):
        download(["toy"], project.raw, None, sources, project.first_use, tmp_path / "file/cache")
    with pytest.raises(DownloadError, match=r"file/manifest\.json cannot be written: .*file"):
        write_manifest([], tmp_path / "file/manifest.json")
    assert project.files() == {}


# The table of sources


def test_sources_yaml_parses_and_states_licences():
    sources = load(ROOT / "data/sources.yaml")
    corpora = {
        "empatheticdialogues",
        "esconv",
        "annomi",
        "epitome",
        "mi",
        "mi_dataset",
        "mmlu",
        "pretrain",
        "truthfulqa",
        "ufjf",
    }
    assert corpora <= set(sources)
    hashes = [each.sha256 for source in sources.values() for each in (*source.files, *source.archives)]
    assert all(each is None or (len(each) == 64 and set(each) <= set("0123456789abcdef")) for each in hashes)
    assert all(source.licence for source in sources.values())


def test_first_use_file_of_the_project_parses():
    assert isinstance(fetch.read_first_use(ROOT / "data/first_use.json"), dict)


@pytest.mark.parametrize(
    "text, message",
    [
        (single("https://x.org/a", "abc"), r"sources\.yaml: toy\.files\.0\.sha256 = 'abc'"),
        (single("ftp://x.org/a", None), r"toy\.files\.0\.url = 'ftp://x\.org/a'"),
        (single(None, None, "../a"), r"toy\.files\.0\.file = '\.\./a'.*relative path"),
        (single(None, None).replace("licence: CC0, ", ""), r"key toy\.licence is missing"),
        (single(None, None).replace("licence: CC0", "licence: CC0, owner: me"), r"key toy\.owner is unknown"),
        ("toy: {licence: CC0, homepage: null, citation: none}", r"toy\.files is missing"),
        ("toy: [", "no valid YAML"),
        ("", r"\(the whole file\)"),
    ],
)
def test_malformed_sources_are_named(project, text, message):
    with pytest.raises(DownloadError, match=message):
        project.sources(text)


@pytest.mark.parametrize("text", ["[]", "{", '{"https://x.org/a": "abc"}'])
def test_malformed_first_use_is_named(project, tmp_path, text):
    project.first_use.write_text(text)
    with pytest.raises(DownloadError, match=r"first_use\.json"):
        project.run({}, "toy", local_dir=put(tmp_path / "local", {"toy/a": b"a"}))


# The real corpora


@pytest.mark.corpora
def test_real_corpora_are_the_published_files(project):
    local = Path(os.environ.get("CORPORA_DIR") or ROOT.parent / "shared/data")
    for corpus in ("empatheticdialogues", "annomi"):
        if not (local / corpus).is_dir():
            pytest.skip(f"no {corpus} in {local}: set CORPORA_DIR to a folder laid out as <corpus>/<file>")
    sources = load(ROOT / "data/sources.yaml")
    manifest = project.run(sources, "empatheticdialogues", "annomi", local_dir=local)
    assert len(manifest) == 5
    pinned = {each.file: each.sha256 for each in sources["annomi"].files}
    assert {each.file: each.sha256 for each in manifest if each.corpus == "annomi"} == pinned
    for entry in manifest:
        assert sha256((project.raw / entry.corpus / entry.file).read_bytes()) == entry.sha256
