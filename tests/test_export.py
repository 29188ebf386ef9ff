"""A variant as one model: its weights, prompts and replies outside the project."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import torch
from helpers import project
from test_chat import FAMILIES

from attune.config.params import compose, load
from attune.data.dialogue import Turn
from attune.generation.generate import generate_replies
from attune.models.chat_template import encode_prompt
from attune.models.loading import add_adapter, load_tokenizer, load_variant
from attune.models.tiny import make_model
from attune.report.card_facts import CARDS, METADATA, hashes
from attune.runtime.errors import ModelError, UserError
from attune.runtime.io import sha256_of
from attune.tools.export import main as export
from attune.tools.merged import check_prompts, exported_template, write_merged
from attune.training.common.trainer import save_adapter

HARDWARE = factory.hardware()
TOLD = 'Answer in "one" word.\n{% if 1 %} \\n \U0001f600'
TEXTS = ["I lost my dog.", "I am so happy for you.", "How old was she?", "Thank you."]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_tokenizer):
    """A project with a base model and an adapter of large random weights, whose replies differ, and a card."""
    folder = tmp_path_factory.mktemp("made")
    project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compose(["model=tiny", "generate.max_new_tokens=12", "generate.max_length=100"])
    model = make_model(tiny_tokenizer, factory.tiny(), 5)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder / "models/base")
    tiny_tokenizer.save_pretrained(folder / "models/base")
    (folder / "models/base/base.json").write_text('{"source": "made"}')
    policy = add_adapter(model, factory.lora(), 1)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    save_adapter(policy, folder / "models/dpo/e3")
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return load()


def write_card(variant, model):
    facts = json.dumps({"variant": variant, "public": True, "files": hashes(model)})
    CARDS.mkdir(parents=True)
    text = f"---\nlibrary_name: peft\n{METADATA}: {facts}\n---\n\n# A card\n\n## Loading\n\nby PEFT\n"
    (CARDS / f"{variant}.md").write_text(text)


def replies(folder, texts=TEXTS):
    """Greedy replies by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        chat = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        whole = model.generate(**prompt)
        found.append(tokenizer.decode(whole[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return found, model


def of_variant(params, folder):
    tokenizer = load_tokenizer(Path("models/base"))
    prompts = [encode_prompt(tokenizer, (Turn("user", text),), 88) for text in TEXTS]
    model = load_variant(Path("models/base"), Path(folder), HARDWARE)
    return generate_replies(model, tokenizer, prompts, params.generate.max_new_tokens, HARDWARE)


def test_an_exported_variant_answers_like_the_variant(run, tmp_path, monkeypatch):
    write_card("sft-dpo", Path("models/dpo/e3"))
    export(["sft-dpo", "out/model"])
    expected, base = of_variant(run, "models/dpo/e3"), of_variant(run, "models/base")
    shutil.move("out/model", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert "attune" not in (tmp_path / "elsewhere/config.json").read_text()
    found, model = replies(tmp_path / "elsewhere")
    assert model.dtype == torch.float32 and found == expected != base
    files = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert {
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "chat_template.jinja",
        "README.md",
    } <= files
    from huggingface_hub import ModelCard

    card = ModelCard.load(tmp_path / "elsewhere/README.md")
    stated = card.data.get(METADATA)["files"]
    assert stated == {name: sha256_of(tmp_path / "elsewhere" / name) for name in files - {"README.md"}}
    assert card.data.library_name == "transformers" and "by PEFT" not in card.text and "# A card" in card.text
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "elsewhere").glob("*.json"))


def test_the_code_of_the_card_loads_bf16(run):
    write_card("sft-dpo", Path("models/dpo/e3"))
    export(["sft-dpo", "out", "--dtype", "bf16"])
    code = Path("out/README.md").read_text().split("```python\n")[1].split("```")[0].replace('"…"', '"out"')
    scope = {}
    exec(code, scope)
    assert scope["model"].dtype == torch.bfloat16 and replies("out")[1].dtype == torch.bfloat16


@pytest.mark.parametrize("told", [None, TOLD], ids=["plain", "instruction"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exported_prompts_are_those_of_the_pipeline(family, told, tmp_path):
    tokenizer = FAMILIES[family]()
    exported = FAMILIES[family]()
    exported.chat_template = exported_template(tokenizer, told)
    exported.save_pretrained(tmp_path)
    check_prompts(tokenizer, tmp_path, told)
    exported.chat_template = exported_template(tokenizer, told) + "!"
    exported.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="outside the pipeline this chat template gives"):
        check_prompts(tokenizer, tmp_path, told)


def test_an_instruction_is_part_of_the_export(run):
    Path("told.txt").write_text(TOLD)
    variant = replace(run.variants["sft-dpo"], instruction="told.txt")
    write_merged("sft-dpo", replace(run, variants={"sft-dpo": variant}), Path("out"), "fp32")
    write_merged("sft-dpo", run, Path("plain"), "fp32")
    assert replies("out")[0] != replies("plain")[0]


def test_sampling_is_that_of_the_pipeline(run):
    write_merged("base", replace(run, generate=replace(run.generate, do_sample=True, top_p=0.9)), Path("out"), "fp32")
    settings = json.loads(Path("out/generation_config.json").read_text())
    assert (settings["do_sample"], settings["top_p"], settings["top_k"], settings["max_new_tokens"]) == (
        True,
        0.9,
        0,
        12,
    )


def test_what_is_not_exported(run):
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    for arguments, error in [
        (["nobody", "out"], "'nobody' is none of variants"),
        (["sft", "out"], "models/sft is missing: `dvc repro card@sft`"),
        (["sft-dpo", "out"], "no model leaves the project without its card: run `dvc repro card@sft-dpo`"),
    ]:
        with pytest.raises(UserError, match=error):
            export(arguments)
    write_card("sft-dpo", Path("models/dpo/e3"))
    with pytest.raises(UserError, match="full is there and is no empty folder"):
        export(["sft-dpo", "full"])
    Path("models/base/base.json").write_text('{"source": "made", "quantization": "nf4"}')
    with pytest.raises(ModelError, match="base model in 4 bits"):
        export(["sft-dpo", "out"])
    assert not Path("out").exists() and Path("full/mine.txt").is_file()
    for arguments in (["sft-dpo", "a", "b"], ["sft-dpo", "a", "-o", "b.jsonl"], ["pairs", "e1"]):
        with pytest.raises(SystemExit):
            export(arguments)
