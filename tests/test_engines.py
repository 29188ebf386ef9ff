"""Both engines of stage `generate`: the built-in engine, and vLLM, which a stand-in replaces."""

import json
from dataclasses import replace
from pathlib import Path

import factory
import pyarrow.parquet as pq
import pytest
import stand_in_vllm
import torch
from helpers import ROOT
from safetensors.torch import load_file

from attune.config.params import check, load
from attune.data.dialogue import Example, Turn
from attune.generation import vllm_engine
from attune.generation.answer import answer, prepare_inputs, write_replies
from attune.generation.generate import generate_replies
from attune.generation.vllm_engine import engine_arguments, served, until, vllm_replies, vllm_signature
from attune.models.chat_template import stop_tokens
from attune.models.loading import add_adapter, load_tokenizer, load_variant
from attune.models.tiny import make_model
from attune.runtime.errors import ModelError, ParamsError
from attune.scoring.common.replies import engine
from attune.training.common.trainer import save_adapter

HARDWARE = factory.hardware()
SETTINGS = factory.generate(max_new_tokens=10, max_length=96)
TURNS = ["I lost my dog.", "I am so happy for you.", "She was ten years old.", "Thank you.", "How old was she?"]
ROWS = [(Example(f"test/{i}", "sad", (Turn("user", text),), "I am sorry!"), None) for i, text in enumerate(TURNS)]
ENGINES = ("builtin", "vllm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer):
    """A base model, and an adapter whose replies differ from it."""
    root = tmp_path_factory.mktemp("engines")
    tiny = factory.tiny()
    model = make_model(tiny_tokenizer, tiny, 5)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(root / "base")
    tiny_tokenizer.save_pretrained(root / "base")
    (root / "base/base.json").write_text(json.dumps({"source": "made"}))
    policy = add_adapter(model, factory.lora(), 1)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    save_adapter(policy, root / "adapter")
    return root / "base", root / "adapter"


@pytest.fixture
def reply(monkeypatch, folders):
    """`reply(engine, folder, settings, rows)`: the replies of an engine."""
    stand_in_vllm.install(monkeypatch)
    base, _ = folders
    tokenizer = load_tokenizer(base)

    def texts(name, folder, settings=SETTINGS, rows=ROWS):
        inputs = prepare_inputs(tokenizer, rows, settings, 13)
        if name == "vllm":
            return vllm_replies(base, folder, tokenizer, inputs.prompts, settings, HARDWARE, inputs.draws)
        model = load_variant(base, folder, HARDWARE)
        return generate_replies(model, tokenizer, inputs.prompts, settings.max_new_tokens, HARDWARE, inputs.draws)

    return texts


@pytest.mark.parametrize("name", ENGINES)
def test_greedy_replies_equal_transformers(name, reply, folders):
    """Against transformers' `generate`, up to the stop token."""
    base, adapter = folders
    tokenizer = load_tokenizer(base)
    expected = {}
    for folder in (base, adapter):
        model = load_variant(base, folder, HARDWARE)
        expected[folder] = []
        for prompt in prepare_inputs(tokenizer, ROWS, SETTINGS, 13).prompts:
            whole = model.generate(
                torch.tensor([prompt]), max_new_tokens=SETTINGS.max_new_tokens, do_sample=False,
                eos_token_id=stop_tokens(tokenizer), pad_token_id=0,
            )  # fmt: skip
            expected[folder].append(tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True).strip())
        assert reply(name, folder) == expected[folder]
    assert expected[base] != expected[adapter] and any(expected[base])


@pytest.mark.parametrize("name", ENGINES)
def test_sampled_reply_depends_on_its_seed_only(name, reply, folders):
    drawn = replace(SETTINGS, do_sample=True)
    replies = reply(name, folders[1], drawn)
    assert reply(name, folders[1], drawn, ROWS[::-1]) == replies[::-1]
    again = [(replace(example, id=f"other/{example.id}"), None) for example, _ in ROWS]
    assert reply(name, folders[1], drawn, again) != replies != reply(name, folders[1])


@pytest.mark.parametrize("name", ENGINES)
def test_records_and_signature(name, reply, folders, tmp_path):
    base, adapter = folders
    tokenizer, model = load_tokenizer(base), load_variant(base, adapter, HARDWARE)
    replies = reply(name, adapter) if name == "vllm" else None
    records = answer(model, tokenizer, ROWS, prepare_inputs(tokenizer, ROWS, SETTINGS, 13), SETTINGS, HARDWARE, replies)
    assert [record["reply"] for record in records] == reply("builtin", adapter)
    write_replies(records, tmp_path / "x.parquet", vllm_signature(adapter) if name == "vllm" else None)
    assert engine(tmp_path / "x.parquet") == ({"engine": "vllm 0.0.stand-in"} if name == "vllm" else {})
    fields = ["id", "label", "context", "reference", "reply", "rejected", "reference_logp", "rejected_logp"]
    assert pq.read_table(tmp_path / "x.parquet").column_names == fields


def test_vllm_arguments(reply, folders, monkeypatch):
    base, adapter = folders
    reply("vllm", adapter)
    assert stand_in_vllm.LLM.made[-1] == {"enable_prefix_caching": True, "generation_config": "vllm"}
    given = engine_arguments(base, base, adapter, SETTINGS, HARDWARE)
    assert (given["enable_lora"], given["max_lora_rank"], given["max_model_len"]) == (True, 8, 96)
    assert "enable_lora" not in engine_arguments(base, base, None, SETTINGS, replace(HARDWARE, dtype="bf16"))
    (record := base / "base.json").write_text(json.dumps({"source": "folder", "folder": "a/b", "quantization": "nf4"}))
    with served(base, base, HARDWARE) as (weights, nothing):
        given = engine_arguments(base, weights, nothing, SETTINGS, replace(HARDWARE, dtype="bf16"))
    record.write_text(json.dumps({"source": "made"}))
    assert (given["model"], given["dtype"]) == ("a/b", "bfloat16")
    assert given["quantization"] == given["load_format"] == "bitsandbytes"


def test_an_adapter_of_a_rank_that_vllm_does_not_serve_is_merged_and_gives_the_same_replies(
    reply, folders, monkeypatch, tmp_path
):
    base, adapter = folders
    monkeypatch.chdir(tmp_path)
    expected = reply("vllm", adapter)
    assert vllm_signature(adapter) == "vllm 0.0.stand-in"
    monkeypatch.setattr(vllm_engine, "RANKS", (1,))
    assert reply("vllm", adapter) == expected
    assert vllm_signature(adapter) == "vllm 0.0.stand-in, adapter merged"
    with served(base, adapter, replace(HARDWARE, dtype="bf16")) as (weights, nothing):
        dtypes = {value.dtype for value in load_file(weights / "model.safetensors").values()}
    assert dtypes == {torch.bfloat16} and nothing is None
    # Nothing of the copy stays.
    assert list(Path(".cache").iterdir()) == []
    (record := base / "base.json").write_text(json.dumps({"source": "folder", "folder": "a/b", "quantization": "nf4"}))
    with pytest.raises(ModelError, match="its base model is in 4 bits, into which nothing is merged"):
        reply("vllm", adapter)
    record.write_text(json.dumps({"source": "made"}))


def test_until_the_first_stop():
    assert until([5, 6, 2, 7], [1, 2]) == [5, 6] and until([5], [2]) == [5] and until([2], [2]) == []


def test_vllm_errors(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"generate\.engine = 'vllm', but vLLM is not installed: set generate\.engine"):
        vllm_replies(folders[0], folders[0], None, [], SETTINGS, HARDWARE, None)
    values = json.loads(json.dumps(load_values()))
    values["generate"]["engine"], values["tiny"]["architecture"], values["model"]["source"] = "vllm", "bert", "made"
    with pytest.raises(ParamsError, match=r"generate\.engine = 'vllm' does not know BERT as a decoder"):
        check(values, "conf")
    values["model"] |= {
        "as_decoder": True,
        "source": "package",
        "package": "an_encoder",
        "file": None,
        "quantization": "nf4",
    }
    values["generate"]["engine"] = "builtin"
    with pytest.raises(ParamsError, match=r"model\.quantization = 'nf4' is for pretrained models"):
        check(values, "conf")


def load_values():
    from dataclasses import asdict

    return asdict(load(ROOT / "params.yaml"))
