"""Hostile models, checkpoints, archives, requests and replies: nothing of them runs, leaves its
folder or becomes markup, and no secret of the environment is written. SECURITY.md says what is trusted.
"""

import ast
import io
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import tarfile
import zipfile
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace

import factory
import pytest
import torch
from helpers import ROOT
from jinja2.exceptions import SecurityError
from markdown_it import MarkdownIt
from micro import MICRO, Clone
from test_rate_load import Server

from attune.classifiers.common.fit import _resume
from attune.classifiers.epitome.files import _read_published
from attune.download import archives
from attune.download.sources import Archive
from attune.models.loading import add_adapter, load_adapter, load_base, load_tokenizer
from attune.models.tiny import make_model, train_tokenizer
from attune.report.samples import MACHINE, quote
from attune.report.samples_page import page as samples_page
from attune.runtime.errors import DownloadError, ModelError, UserError, reported
from attune.tools.chat import show
from attune.tools.rate_page import POLICY
from attune.tools.review import _samples
from attune.training.common.trainer import run, run_arguments
from attune.training.pretraining.pretrain import packed_sequences

HARDWARE = factory.hardware(save_every=2)
WORDS = ["i lost my dog today", "i am sorry to hear that", "what happened then", "she ran away"]


@pytest.fixture
def canary(tmp_path):
    """A folder that hostile code would create; it must not exist at the end of any test."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


class Hostile:
    """Makes the canary when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_canary_is_made_where_pickles_are_loaded(tmp_path):
    torch.save({"a": Hostile(tmp_path / "made")}, tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "made").is_dir()


# Models


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base model, an adapter of it, and checkpoints of a run that was killed after step 2."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = train_tokenizer(WORDS * 3, 300, 128)
    model = make_model(tokenizer, factory.tiny(vocab_size=300, hidden_size=16, intermediate_size=32, layers=1), 1)
    for one in (model, tokenizer):
        one.save_pretrained(folder / "base")
    record = {"name": "micro", "source": "made"}
    (folder / "base/base.json").write_text(json.dumps(record))
    add_adapter(model, factory.lora(r=2, alpha=4), 1).save_pretrained(folder / "adapter")
    train(folder / "base", folder / "run")
    shutil.rmtree(folder / "run/checkpoint-3")
    return folder


def train(base, folder):
    """Pretraining as stage base does it, three steps of it; from the newest checkpoint where there is one."""
    model = load_base(base, HARDWARE)
    turns = [tuple(SimpleNamespace(role="user", text=text) for text in WORDS)] * 6
    blocks = packed_sequences(load_tokenizer(base), turns, 8)[:6]
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        max_steps=3, per_device_train_batch_size=2, **run_arguments(HARDWARE, 1, folder)
    )  # fmt: skip
    run(Trainer(model=model, args=arguments, train_dataset=blocks), folder.with_name("curves"))
    return model


@pytest.fixture
def copied(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "trained"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "model"])
def test_a_pickle_in_a_checkpoint_never_runs(name, copied, canary, recorded):
    """Whether the run refuses the checkpoint, or starts without it."""
    checkpoint = copied / "run/checkpoint-2"
    if name == "model":
        (checkpoint / "model.safetensors").unlink()
        name = "pytorch_model.bin"
    torch.save({"a": Hostile(canary)}, checkpoint / name)
    with suppress(UserError, UnpicklingError):
        train(copied / "base", copied / "run")
    recorded("security", [{"what": f"hostile {name} in a checkpoint", "cases": 1, "failures": int(canary.exists())}])


def test_a_checkpoint_of_a_scorer_runs_no_pickle(tmp_path, canary, recorded):
    torch.save({"a": Hostile(canary)}, tmp_path / "x.pt")
    with suppress(UserError, UnpicklingError):
        _resume(None, None, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"x\.pt does not contain tensors only, and nothing else is loaded"):
        _read_published(tmp_path / "x.pt")
    recorded("security", [{"what": "hostile checkpoint of a scorer", "cases": 2, "failures": int(canary.exists())}])


@pytest.mark.parametrize("sharded", [False, True])
def test_a_base_model_without_safetensors_is_refused(sharded, copied, canary, recorded):
    (copied / "base/model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    torch.save({"a": Hostile(canary)}, copied / "base" / name)
    if sharded:
        index = {"metadata": {}, "weight_map": {"a": name}}
        (copied / "base/pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*no pickled weights are loaded"):
        load_base(copied / "base", HARDWARE)
    recorded("security", [{"what": f"base model of pickles: {name}", "cases": 1, "failures": int(canary.exists())}])


def test_an_adapter_without_safetensors_or_of_another_kind_is_refused(copied, canary, recorded):
    folder = copied / "adapter"
    model = load_base(copied / "base", HARDWARE)
    torch.save({"a": Hostile(canary)}, folder / "adapter_model.bin")
    load_adapter(model, folder, trainable=False)  # it is never opened if there are safetensors
    config = json.loads((folder / "adapter_config.json").read_text())
    other = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 1, "prompt_tuning_init": "TEXT",
             "prompt_tuning_init_text": "x", "tokenizer_name_or_path": str(copied / "base"),
             "tokenizer_kwargs": {"trust_remote_code": True}}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(other))
    with pytest.raises(ModelError, match="peft_type = 'PROMPT_TUNING', but adapters here are LORA"):
        load_adapter(model, folder, trainable=False)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no adapter \(adapter_model\.safetensors is missing\)"):
        load_adapter(model, folder, trainable=False)
    recorded("security", [{"what": "hostile adapter", "cases": 3, "failures": int(canary.exists())}])


@pytest.mark.parametrize("known", [False, True])
def test_code_that_comes_with_a_model_never_runs(known, copied, canary, recorded):
    base = copied / "base"
    (base / "own.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    config = json.loads((base / "config.json").read_text())
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    config |= {"auto_map": classes, "trust_remote_code": True} | ({} if known else {"model_type": "own"})
    (base / "config.json").write_text(json.dumps(config))
    tokens = json.loads((base / "tokenizer_config.json").read_text())
    tokens |= {"auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}, "tokenizer_class": "OwnTokenizer"}
    (base / "tokenizer_config.json").write_text(json.dumps(tokens))
    if known:
        # transformers has a class for it, and takes that one.
        assert load_base(base, HARDWARE).config.model_type == "llama"
    else:
        with pytest.raises(ModelError, match=r"cannot be loaded: .*no code that comes with a model is run"):
            load_base(base, HARDWARE)
    with suppress(ModelError):
        load_tokenizer(base)
    recorded("security", [{"what": "model with code of its own", "cases": 2, "failures": int(canary.exists())}])


def test_a_chat_template_reaches_no_python(copied, canary):
    tokenizer = load_tokenizer(copied / "base")
    tokenizer.chat_template = "{{ ''.__class__.__base__.__subclasses__() }}"
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


FORBIDDEN = {
    *("pd.read_pickle", "pandas.read_pickle", "joblib.load", "pickle.load", "pickle.loads"),
    *("dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "marshal.loads", "shelve.open"),
    *("yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "eval", "exec", "__import__", "read_pickle"),
}


def dangerous(source):
    """Calls that could run code from a file, a shell, or a model's own code after a prompt."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    keywords = {call: {f"{one.arg}={ast.unparse(one.value)}" for one in call.keywords} for call in calls}
    found = {ast.unparse(call.func) for call in calls} & FORBIDDEN
    # Without the keyword transformers asks the person at the terminal.
    asking = {
        name for call, own in keywords.items()
        if re.fullmatch(r"Auto\w+\.from_pretrained", name := ast.unparse(call.func))
        and "trust_remote_code=False" not in own
    }  # fmt: skip
    unsafe = {"shell=True", "allow_pickle=True", "trust_remote_code=True", "weights_only=False"}
    return found | asking | (set().union(*keywords.values()) & unsafe)


def test_no_code_here_loads_pickles_or_starts_a_shell(recorded):
    files = [path for folder in ("attune", "stages", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    # YAML(typ="safe").load of ruamel is not among them: a name of its own stands before its dot.
    found = {path.name: names for path in files if (names := dangerous(path.read_text(encoding="utf-8")))}
    recorded("security", [{"what": "source files that could load a pickle", "cases": len(files),
                           "failures": len(found)}])  # fmt: skip
    assert found == {}
    # NumPy refuses pickles where it is not told otherwise.
    assert dangerous("np.load(path, allow_pickle=True)") == {"allow_pickle=True"} and not dangerous("np.load(path)")
    assert dangerous("AutoModel.from_pretrained(folder)") == {"AutoModel.from_pretrained"}


# Archives


def member(name, kind=tarfile.REGTYPE, link="", mode=0o644, **headers):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.pax_headers = kind, link, mode, headers
    return info


OUT = "OUTSIDE"
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.csv",
          "GNU.sparse.realsize": str(2**42)}  # fmt: skip
TARS = {
    "name above": [member("../a.csv")],
    "name with .. inside": [member("x/../../a.csv")],
    "absolute name": [member(f"{OUT}/a.csv")],
    "symbolic link": [member("a.csv", tarfile.SYMTYPE, f"{OUT}/secret")],
    "hard link": [member("a.csv", tarfile.LNKTYPE, f"{OUT}/secret")],
    "hard link above": [member("a.csv", tarfile.LNKTYPE, "../../secret")],
    "link, then written through": [member("d", tarfile.SYMTYPE, OUT), member("d/a.csv")],
    "link and file of one name": [member("a.csv", tarfile.SYMTYPE, f"{OUT}/secret"), member("a.csv")],
    "character device": [member("a.csv", tarfile.CHRTYPE)],
    "block device": [member("a.csv", tarfile.BLKTYPE)],
    "pipe": [member("a.csv", tarfile.FIFOTYPE)],
    "setuid": [member("a.csv", mode=0o6777)],
    "4 TiB, sparse": [member("GNUSparseFile.0/a.csv", **SPARSE)],
}


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.lstat() for path in folder.rglob("*")}


@pytest.mark.parametrize("case", TARS)
def test_a_hostile_tar_writes_plain_files_below_its_folder_or_nothing(case, tmp_path, recorded):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (tmp_path / "in/raw").mkdir(parents=True)
    with tarfile.open(tmp_path / "p.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for one in TARS[case]:
            one = replace_paths(one, str(outside))
            content = b"0\n".ljust(512, b"\0") if one.pax_headers else b"text" if one.isreg() else b""
            one.size = len(content)
            tar.addfile(one, io.BytesIO(content))
    before = everything(outside)
    archive = Archive("http://a.example/p.tar", None, ("a.csv", "d/a.csv"))
    if case in ("link, then written through", "link and file of one name", "setuid"):
        archive = replace(archive, members=("d/a.csv",) if "through" in case else ("a.csv",))
        [name] = archives.unpack(tmp_path / "p.tar", archive, tmp_path / "in/raw")
        made = (tmp_path / "in/raw" / name).lstat()
        assert stat.S_ISREG(made.st_mode) and not made.st_mode & (stat.S_ISUID | stat.S_ISGID) and made.st_nlink == 1
        assert (tmp_path / "in/raw" / name).read_bytes() == b"text"
    else:
        with pytest.raises(DownloadError, match=r"holds no plain file|at most 4,294,967,296 are unpacked"):
            archives.unpack(tmp_path / "p.tar", archive, tmp_path / "in/raw")
        assert everything(tmp_path / "in").keys() == {"raw"}
    assert everything(outside).keys() == before.keys() and (outside / "secret").read_text() == "secret"
    assert (outside / "secret").lstat().st_nlink == 1 and {p.name for p in tmp_path.iterdir()} == {
        "outside", "in", "p.tar"
    }  # fmt: skip
    recorded("security", [{"what": f"tar: {case}", "cases": 1, "failures": 0}])


def replace_paths(info, outside):
    """A copy, since names differ from test to test."""
    made = member(info.name.replace(OUT, outside), info.type, info.linkname.replace(OUT, outside), info.mode)
    made.pax_headers = info.pax_headers
    return made


def zip_member(name, mode=0o644, kind=stat.S_IFREG):
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = (kind | mode) << 16, zipfile.ZIP_DEFLATED
    return info


@pytest.mark.parametrize("case", ["above", "absolute", "backslash", "link", "bomb", "lying bomb"])
def test_a_hostile_zip_writes_nothing(case, tmp_path, monkeypatch, recorded):
    monkeypatch.setattr(archives, "MOST_BYTES", 10_000)
    (tmp_path / "in/raw").mkdir(parents=True)
    names = {"above": "../a.csv", "absolute": f"{tmp_path}/a.csv", "backslash": "..\\a.csv"}
    info = zip_member(names.get(case, "a.csv"), kind=stat.S_IFLNK if case == "link" else stat.S_IFREG)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as zipped:
        zipped.writestr(info, bytes(1_000_000) if "bomb" in case else b"/etc/passwd")
        if case == "lying bomb":
            # The table at the end declares less than is there.
            info.file_size = 9_000
    archive = Archive("http://a.example/p.zip", None, ("a.csv",))
    message = {"bomb": "have 1,000,000 bytes, and at most 10,000", "lying bomb": "cannot be unpacked"}
    with pytest.raises(DownloadError, match=message.get(case, "holds no plain file")):
        archives.unpack(tmp_path / "p.zip", archive, tmp_path / "in/raw")
    assert everything(tmp_path).keys() == {"in", "in/raw", "p.zip"}
    recorded("security", [{"what": f"zip: {case}", "cases": 1, "failures": 0}])


# Secrets

SECRETS = {name: f"canary-{name}-4711" for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")}


@pytest.mark.slow
def test_a_secret_of_the_environment_is_written_nowhere(tmp_path, monkeypatch, recorded):
    """After stages with a model and curves, as an experiment: in no file, no Git object, no cache."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CORPORA_DIR", raising=False)
    clone = Clone.of_the_working_tree(tmp_path / "clone")
    settings = [f"-S{one}" for one in (*MICRO, "tiny.epochs=0.1")]
    said = clone.run("dvc", "exp", "run", "base", *settings)
    assert "Running stage 'base'" in said and (clone.folder / "reports/curves/base/plots/metrics/loss.tsv").is_file()
    written = {path: path.read_bytes() for path in clone.folder.rglob("*") if path.is_file()}
    # Git packs its objects: experiments are commits.
    kept = subprocess.run(
        ["git", "cat-file", "--batch-all-objects", "--batch"], cwd=clone.folder, check=True, capture_output=True
    ).stdout
    found = [str(path) for path, content in written.items() if any(v.encode() in content for v in SECRETS.values())]
    found += [name for name, value in SECRETS.items() if value.encode() in kept or value in said]
    assert any(".dvc/tmp" in str(path) for path in written)
    recorded("security", [{"what": "files and Git objects of an experiment that hold a secret of the environment",
                           "cases": len(written) + kept.count(b" blob "), "failures": len(found)}])  # fmt: skip
    assert found == []


# Servers


@pytest.fixture(scope="module")
def rating(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("rating"), 2)
    server.start()
    # Its line comes before it listens.
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port)):
            break
    yield server
    server.kill()


def status(port, method, path, headers, body=b""):
    """The status of an answer to a request written by hand; 0 where the connection is closed without one."""
    lines = [f"{method} {path} HTTP/1.1", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split()[1]) if answer else 0


def test_the_server_listens_on_loopback_alone(rating, recorded):
    # All of 127.0.0.0/8 reaches a server that listens on every address.
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", rating.port), timeout=30)
    recorded("security", [{"what": "servers that listen on more than loopback", "cases": 1, "failures": 0}])


def test_foreign_names_and_pages_of_foreign_sites_are_refused(rating, recorded):
    own = f"127.0.0.1:{rating.port}"
    hosts = ["evil.example", f"evil.example:{rating.port}", f"{own}.evil.example", f"localhost.evil:{rating.port}",
             "127.0.0.1", "127.0.0.1:1", f"[::1]:{rating.port}", f"0.0.0.0:{rating.port}", "", f"{own},evil.example",
             f"evil.example@{own}"]  # fmt: skip
    refused = [status(rating.port, "GET", "/next?rater=a", [f"Host: {host}"]) for host in hosts]
    refused.append(status(rating.port, "GET", "/", []))
    refused.append(status(rating.port, "GET", "/", [f"Host: {own}", "Host: evil.example"]))
    origins = ["http://evil.example", "null", f"https://{own}", f"http://{own}.evil.example", f"http://localhost:{rating.port}",
               "http://127.0.0.1", ""]  # fmt: skip
    for origin in origins:
        headers = [f"Host: {own}", f"Origin: {origin}", "Content-Type: application/json"]
        refused.append(status(rating.port, "POST", "/answer", headers, b"{}"))
    assert set(refused) <= {400, 403} and refused.count(400) <= 2, refused
    for headers in ([f"Host: {own}"], [f"Host: localhost:{rating.port}"], [f"Host: {own}", f"Origin: http://{own}"]):
        assert status(rating.port, "GET", "/", headers) == 200
    recorded("security", [{"what": "requests of foreign hosts and sites", "cases": len(refused), "failures": 0}])


# Pages and the terminal

TAME = "a harmless reply"
PAYLOADS = [
    "<script>document.title = 'taken'</script>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>", "<iframe srcdoc='<script>alert(1)</script>'>", "--><script>alert(1)</script><!--",
    "[click](javascript:alert(1))", "<javascript:alert(1)>", "![x](http://evil.example/x.png)", "<a href=x>y</a>",
    "[x]: javascript:alert(1)\n[x]", "http://evil.example www.evil.example", "# heading\n\n- list\n\n> quote",
    "| a | b |", "```\ncode\n```", "    code", "a\u202eb\u2066c", "a\u2028b\u0000c", "&lt;script&gt; &#60;b&#62;",
    "{{7*7}} ${7*7} <%= 7 %>", "</textarea></title></style><b>", "\\<b>\\[a\\](b)", "***\n---\n===",
    "@someone #1 a@b.example", "<details><summary>x",
]  # fmt: skip


class Structure(HTMLParser):
    """Elements and attributes in their order, without texts."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, attributes))

    def handle_endtag(self, tag):
        self.found.append(tag)

    def handle_comment(self, data):
        self.found.append("comment")


def row(text):
    return {
        "id": "test/1",
        "label": text,
        "context": [{"role": "user", "text": text}],
        "reference": text,
        "reply": text,
    }


def html_page(text):
    return samples_page({"base": [row(text)]}, {"base": {}}, text, text, MACHINE)


def comment(text):
    """A reviewer's comment, as GitHub renders it, links included."""
    before, after = {text: row(text)}, {text: row(text) | {"reply": f"{text}."}}
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render("\n\n".join(_samples(before, after, 1)))
    return rendered.replace("<br />\n", "").replace("<br>\n", "")


def quoted(text):
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(quote(text))
    return rendered.replace("<br />\n", "").replace("<br>\n", "")


@pytest.mark.parametrize("make", [html_page, comment, quoted])
def test_replies_become_no_markup(make, recorded):
    tame = Structure(make(TAME)).found
    taken = [text for text in PAYLOADS if Structure(make(text)).found != tame]
    recorded("security", [{"what": f"texts in {make.__name__.replace('_', ' ')} that became markup",
                           "cases": len(PAYLOADS), "failures": len(taken)}])  # fmt: skip
    assert taken == []
    # Invisible marks that turn letters around stay in Markdown, and in their own element in HTML.
    assert make is html_page or not re.search("[\u202a-\u202e\u2066-\u2069]", "".join(map(make, PAYLOADS)))


def test_pages_with_scripts_name_them_and_no_other():
    assert "default-src 'none'" in POLICY and "script-src 'sha256-" in POLICY and "unsafe-eval" not in POLICY
    assert re.search(r"script-src 'sha256-[^' ]+'\"", html_page(TAME))


ESCAPES = ["\x1b[2J", "\x1b]0;title\x07", "\x1b]8;;http://evil.example\x07x", "\x9b31m", "\x08\x08", "\rover",
           "\x1bP$q\x1b\\", "\u202eabc", "\x7f", "\x00"]  # fmt: skip


def test_a_terminal_shows_replies_and_errors_and_obeys_none(capsys, recorded):
    printed = []
    for text in ESCAPES:
        show(piece for piece in [f"a{text}b\n", "second line"])
        printed.append(capsys.readouterr().out.removesuffix("\n"))
    for text in ESCAPES:
        with pytest.raises(SystemExit), reported():
            raise UserError(f"line 3: label {text} is none")
    printed += capsys.readouterr().err.split("error: ")[1:]
    obeyed = [text for text in printed if not all(c.isprintable() or c == "\n" for c in text)]
    recorded("security", [{"what": "control sequences that reach a terminal", "cases": len(printed),
                           "failures": len(obeyed)}])  # fmt: skip
    assert obeyed == [] and all(text.endswith("second line") for text in printed[: len(ESCAPES)])
