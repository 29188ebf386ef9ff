"""The sources of a model and of an encoder: hub, folder, package, made; and what is wrong with a model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import torch
from safetensors.torch import load_file
from small import make
from test_params import composed

from attune.config.params import check
from attune.data.dialogue import Turn
from attune.models.chat_template import encode_prompt, fit_context
from attune.models.encoder import encoder_signature, load_encoder
from attune.models.loading import add_adapter, load_base, load_tokenizer
from attune.runtime.errors import ModelError
from stages import base as base_stage

HARDWARE = factory.hardware()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROMPT = [Turn("user", "i feel so happy today")]


@pytest.fixture(scope="module")
def params():
    return check(composed(), "conf")


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    """A small model in Hugging Face layout."""
    folder = make(tmp_path_factory.mktemp("small"), 8) / "models/base"
    (folder / "base.json").unlink()
    return folder


@pytest.fixture
def given(small_model, tmp_path, monkeypatch) -> Path:
    """A copy of the small model outside of the project, which is the working folder."""
    shutil.copytree(small_model, tmp_path / "elsewhere/model")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "elsewhere/model"


def run(params, **changes) -> dict:
    """Stage `base`; the record that it writes."""
    model = replace(params.model, **{"name": "mine", "sha256": None, "file": None, "package": None} | changes)
    base_stage.main(replace(params, model=model))
    return json.loads(Path("models/base/base.json").read_text(encoding="utf-8"))


def loads_as(given: Path) -> bool:
    """Whether `models/base` has the weights of the model in `given`, to the bit, and its tokenizer."""
    base = Path("models/base")
    ours = load_base(base, HARDWARE).state_dict()
    same = [torch.equal(ours[name], weight) for name, weight in load_file(given / "model.safetensors").items()]
    return all(same) and load_tokenizer(base).get_vocab() == tokenizer_of(given).get_vocab()


def tokenizer_of(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("relative", [True, False])
def test_folder(given, params, relative):
    folder = "../elsewhere/model" if relative else str(given)
    record = run(params, source="folder", folder=folder)
    assert (record.pop("name"), record.pop("source"), record.pop("folder")) == ("mine", "folder", folder)
    assert loads_as(given) and [path.name for path in Path("models/base").iterdir()] == ["base.json"]
    (given / "generation_config.json").write_text("{}")
    assert run(params, source="folder", folder=folder)["sha256"] != record["sha256"]


def test_package(given, params, tmp_path, monkeypatch):
    package = tmp_path / "site/some_model"
    shutil.copytree(given, package / "inside")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    record = run(params, source="package", package="some_model")
    assert record["package"] == "some_model unknown version" and loads_as(given)
    with pytest.raises(ModelError, match=r"but model\.sha256 pins 0000"):
        run(params, source="package", package="some_model", sha256="0" * 64)
    with pytest.raises(ModelError, match=r"model\.package = 'some_model' holds no a\.gguf"):
        run(params, source="package", package="some_model", file="a.gguf")


def test_hub_offline(given, params, tmp_path, monkeypatch):
    """Tests run with HF_HUB_OFFLINE=1: the commit of the cache's branch is recorded, and loaded ever after."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--some--model"
    shutil.copytree(given, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    record = run(params, source="hub", hub_id="some/model")
    assert (record["hub_id"], record["revision"], record["commit"]) == ("some/model", "main", COMMIT)
    assert loads_as(given)
    (repository / "refs/main").unlink()
    assert loads_as(given)
    # An adapter names the model of the hub, not the folder of this machine's cache.
    adapter = add_adapter(load_base(Path("models/base"), HARDWARE), params.lora, 1).peft_config["default"]
    assert (adapter.base_model_name_or_path, adapter.revision) == ("some/model", COMMIT)
    # A commit names itself.
    assert run(params, source="hub", hub_id="some/model", revision=COMMIT)["commit"] == COMMIT
    with pytest.raises(ModelError, match=r"model\.hub_id = 'some/model' at revision 'main' cannot be had: "):
        run(params, source="hub", hub_id="some/model")
    with pytest.raises(ModelError, match=r"model\.hub_id = '/no id' at revision 'main' cannot be had: Repo id must"):
        run(params, source="hub", hub_id="/no id")


def damaged(folder: Path, damage: str) -> None:
    """The model in `folder`, made unusable in one way."""
    if damage == "no folder":
        shutil.rmtree(folder)
    elif damage == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif damage == "no template":
        (folder / "chat_template.jinja").unlink()
    elif damage == "encoder":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))
    elif damage == "unknown":
        (folder / "config.json").write_text(json.dumps({"model_type": "new", "auto_map": {"AutoConfig": "a.B"}}))
    elif damage == "no end of turn":
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}"
        )
    else:
        (folder / damage).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no folder", r"model\.folder = '.*' is no folder: name one with config\.json and model\.safetensors"),
        ("config.json", r"holds no config\.json: name the folder of a model in Hugging Face layout"),
        ("tokenizer.json", r"holds no tokenizer \(tokenizer\.json\): save it there with tokenizer\.save_pretrained"),
        ("model.safetensors", r"holds no model\.safetensors: save the model with model\.save_pretrained"),
        ("pickled", r"holds no model\.safetensors but pytorch_model\.bin, pickled weights, .* can run code: save"),
        ("no template", r"has no chat template or no EOS token: take an instruction-tuned model, or add them"),
        ("encoder", r"is no language model but an encoder \(roberta\): take a decoder"),
        ("unknown", r"cannot be loaded: .* no code that comes with a model is run"),
        ("no end of turn", r"the chat template.* a reply"),
    ],
)
def test_what_is_wrong_with_a_model_is_one_sentence(given, params, damage, message):
    damaged(given, damage)
    with pytest.raises(ModelError, match=message) as raised:
        run(params, source="folder", folder=str(given))
    assert "\n" not in str(raised.value) and not Path("models/base").exists()


@pytest.mark.parametrize("word", ["english ", "вчера ", "2024-11-25T10:31:07 "])
def test_a_long_turn_keeps_as_many_words_as_fit(word, tiny_tokenizer):
    words = (word * 150).split()
    [kept] = fit_context(tiny_tokenizer, (Turn("user", " ".join(words)),), 256)
    number = len(kept.text.split())
    one_more = Turn("user", " ".join(words[: number + 1]))
    assert kept.text == " ".join(words[:number]) and 0 < number < 150
    assert len(encode_prompt(tiny_tokenizer, [kept], 999)) <= 256 < len(encode_prompt(tiny_tokenizer, [one_more], 9999))


def test_a_single_long_word_is_cut(tiny_tokenizer):
    [kept] = fit_context(tiny_tokenizer, (Turn("user", "ab" * 400),), 64)
    assert len(encode_prompt(tiny_tokenizer, [kept], 999)) in (63, 64)


def test_made_encoder():
    """Each call gives the same encoder; a word is as many tokens as letters."""
    encoder = factory.encoder(source="made")
    (model, tokenizer), (again, _) = (load_encoder(encoder, HARDWARE) for _ in range(2))
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    assert len(tokenizer("I won!")["input_ids"]) == 7 and tokenizer.is_fast
    assert encoder_signature(encoder) | {"encoder_sha256": ""} == {
        "encoder": "e", "encoder_origin": "made", "encoder_sha256": ""
    }  # fmt: skip


def test_encoder_in_a_folder(tmp_path):
    from transformers import BertConfig, BertModel

    model, tokenizer = load_encoder(factory.encoder(source="made"), HARDWARE)
    BertModel(BertConfig(**{**model.config.to_dict(), "num_hidden_layers": 1})).save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    encoder = factory.encoder(source="folder", folder=str(tmp_path / "mine"))
    loaded, _ = load_encoder(encoder, HARDWARE)
    assert loaded.config.num_hidden_layers == 1
    assert encoder_signature(encoder)["encoder_origin"] == encoder.folder
