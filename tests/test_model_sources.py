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
from attune.models.encoder import encoder_signature, load_encoder, made
from attune.models.loading import add_adapter, load_base, load_tokenizer
from attune.models.weights import weights_hash
from attune.runtime.errors import ModelError
from stages import base as base_stage
from stages import dpo as dpo_stage
from stages import sft as sft_stage

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
    with pytest.raises(ModelError, match=r"but model\.sha256 pins 0000.*: install it again or, if this is the model"):
        run(params, source="package", package="some_model", sha256="0" * 64)
    with pytest.raises(ModelError, match=r"model\.package = 'some_model' holds no a\.gguf"):
        run(params, source="package", package="some_model", file="a.gguf")
    for name in ("some-model", "some.model"):
        with pytest.raises(ModelError, match=rf"'{name}' is not installed: Python imports it as some_model: set mo"):
            run(params, source="package", package=name)
    # Its beginning would be imported.
    with pytest.raises(ModelError, match=r"model\.package = 'some_model\.inside' is not installed: run `make setup`"):
        run(params, source="package", package="some_model.inside")
    (package / "inside/chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"the tokenizer in \S+/site/some_model/inside has no chat template"):
        run(params, source="package", package="some_model")


def test_a_hash_that_is_pinned(given, params, tmp_path, monkeypatch):
    """Of a folder or the hub, too: `hub` is a cache with the model as commit `COMMIT`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copytree(given, tmp_path / "hub/models--some--model/snapshots" / COMMIT)
    of_hub = {"source": "hub", "hub_id": "some/model", "revision": COMMIT}
    own = weights_hash([given / "model.safetensors"])
    for where in ({"source": "folder", "folder": str(given)}, of_hub):
        assert run(params, **where, sha256=own)["source"] == where["source"]
        with pytest.raises(ModelError, match=rf"sha256 is {own}, but .* pins 0000.* set model\.sha256 = null, or to "):
            run(params, **where, sha256="0" * 64)
    assert weights_hash([given / "model.safetensors"] * 2) != own


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
    elif damage == "a tokenizer of nothing":
        (folder / "tokenizer.json").write_text("{}")
    elif damage == "a tokenizer of another form":
        (folder / "tokenizer.json").write_text('{"added_tokens": [], "model": {"type": "new"}}')
    elif damage == "a configuration of another form":
        (folder / "config.json").write_text("[]")
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
        ("a tokenizer of nothing", r"cannot be loaded: KeyError: 'added_tokens'\. Save it again with save_pretrained"),
        ("a tokenizer of another form", r"cannot be loaded: .*\. Save it again with save_pretrained"),
        ("a configuration of another form", r"cannot be loaded: .*\. Save it again with save_pretrained"),
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


def an_encoder(folder: Path) -> Path:
    """The made encoder in Hugging Face layout."""
    for part in made():
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stage", ["base", "sft", "dpo"])
def test_encoders_are_checked_before_anything_trains(stage, given, params, tmp_path):
    """Nothing but an encoder is there: no dialogues, no pairs, and for SFT and DPO no base model."""
    model = factory.model(source="folder", folder=str(given))
    run_stage = {
        "base": lambda params: base_stage.main(replace(params, model=model)),
        "sft": lambda params: sft_stage.main("sft", params),
        "dpo": lambda params: dpo_stage.main("e1", params),
    }[stage]
    folder = an_encoder(tmp_path / "encoder")
    fits = replace(params, encoder=factory.encoder(source="folder", folder=str(folder)))
    of_hub = replace(params.bertscore, hub_id="a/b", revision="main")
    for changes, message in (
        (
            {"bertscore": of_hub},
            r"bertscore\.hub_id = 'a/b' at .* had: .* bertscore\.hub_id = null the encoder of sec",
        ),
        ({"bertscore": replace(params.bertscore, layer=7)}, r"bertscore\.layer = 7: the encoder e has layers 0 to 6"),
        ({"encoder": factory.encoder(source="folder", folder="nowhere")}, r"encoder\.folder = 'nowhere' is no folder"),
        (
            {"encoder": factory.encoder(source="folder", folder=str(given))},
            r"\(section encoder\) is no encoder but a language model \(llama\): take one whose attention is bidirec",
        ),
    ):
        with pytest.raises(ModelError, match=message) as raised:
            run_stage(replace(fits, **changes))
        assert "\n" not in str(raised.value) and not Path("models/base").exists()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"the model in \S+ cannot be loaded: SafetensorError: .*\. Save it again"):
        run_stage(fits)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"the model in \S+ cannot be loaded: KeyError: 'added_tokens'\. Save it"):
        run_stage(fits)


@pytest.mark.parametrize("kind", [("bert", {"is_decoder": True}), ("bart", {}), ("gpt2", {})], ids=lambda kind: kind[0])
def test_decoders_are_no_encoders(kind, tmp_path):
    from transformers import AutoConfig

    an_encoder(tmp_path)
    name, settings = kind
    AutoConfig.for_model(name, **settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"is no encoder but a language model \({name}\)"):
        load_encoder(factory.encoder(source="folder", folder=str(tmp_path)), HARDWARE)
