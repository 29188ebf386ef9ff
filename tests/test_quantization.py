"""QLoRA: a base model in 4 bits with an fp32 adapter; and the optimizers of bitsandbytes."""

import json
import math
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import factory
import pytest
import torch
from helpers import ROOT

from attune.config.params import load
from attune.models import quantization
from attune.models.base_record import base_record
from attune.models.loading import (
    add_adapter,
    load_adapter,
    load_base,
    load_tokenizer,
    load_variant,
    variant_signature,
)
from attune.models.tiny import configuration, make_model
from attune.runtime.errors import ModelError
from attune.tools.memory.sizes import size
from attune.training.common.collate import IGNORED, pad_supervised
from attune.training.common.packed_forward import prepare
from attune.training.common.trainer import common_arguments, run, save_adapter
from attune.training.dpo.reference_logps import complete, identity, with_reference
from attune.training.dpo.trainer import make_trainer
from attune.training.sft.trainer import supervised_trainer

LORA = factory.lora()
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason=f"bitsandbytes is not installed: {quantization.INSTALL}"
)


@pytest.fixture
def params():
    params = load(ROOT / "params.yaml")
    hardware = replace(params.hardware, dtype="fp32", threads=1, micro_batch_size=2)
    tiny = replace(params.tiny, vocab_size=400, hidden_size=64, intermediate_size=128, layers=2, heads=2)
    schedule = {"epochs": 1, "batch_size": 2, "max_length": 48, "warmup_steps": 0, "learning_rate": 1e-5}
    return replace(
        params.with_hardware(hardware),
        tiny=tiny,
        model=replace(params.model, name="tiny", source="made", quantization="nf4"),
        sft=replace(params.sft, **schedule),
        dpo=replace(params.dpo, **schedule),
    )


@pytest.fixture
def base(tmp_path, params, tiny_tokenizer):
    """A small base model whose record has quantization nf4."""
    folder = tmp_path / "base"
    make_model(tiny_tokenizer, params.tiny, 1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    record(folder, params.model)
    return folder


def record(folder: Path, model):
    (folder / "base.json").write_text(json.dumps(base_record(model)))


def whole(model):
    return replace(model, quantization=None)


def test_record_names_a_quantization(params):
    assert base_record(whole(params.model), commit="c") == {"name": "tiny", "source": "made", "commit": "c"}
    assert base_record(params.model) == {"name": "tiny", "source": "made", "quantization": "nf4"}


def test_identity_depends_on_quantization(base, params, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    short = identity(base, tmp_path, params.hardware)
    record(base, whole(params.model))
    assert identity(base, tmp_path, params.hardware) != short


def test_missing_bitsandbytes(base, params, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"model\.quantization = 'nf4' needs bitsandbytes.*`pip install bitsandbytes=="
    ):
        load_base(base, params.hardware)
    on_gpu = replace(params.hardware, device="cuda", optimizer="paged_adamw_8bit")
    with pytest.raises(ModelError, match=r"training\.optimizer = 'paged_adamw_8bit' needs bitsandbytes"):
        common_arguments(params.sft, on_gpu, 1, base)
    with pytest.raises(ModelError, match=r"training\.optimizer = 'paged_adamw_8bit' is for a GPU"):
        common_arguments(params.sft, replace(on_gpu, device="cpu"), 1, base)


def test_memory_estimate(params):
    config = configuration(params.tiny, 400)
    short, full = (size(config, replace(params, model=replace(params.model, quantization=q))) for q in ("nf4", None))
    linear = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    made_whole = 4 * 64 * 128
    assert full.weights - short.weights == pytest.approx(linear * (4 - 0.515869) - made_whole, abs=20)
    assert (short.parameters, short.adapter) == (full.parameters, full.adapter)
    hardware = replace(params.hardware, optimizer="paged_adamw_8bit")
    paged = replace(params, lora=factory.lora(r=64, alpha=64)).with_hardware(hardware)
    assert size(config, paged).optimizer == pytest.approx(2 * size(config, paged).lora * (1 + 4 / 256), rel=0.001)


def test_signature(base, params):
    assert variant_signature(base, base)["quantization"] == "nf4"
    record(base, whole(params.model))
    assert "quantization" not in variant_signature(base, base)


@needs_bitsandbytes
def test_4_bit_model_is_close_and_not_merged(base, params, tmp_path):
    hardware = params.hardware
    short = load_base(base, hardware)
    linear = short.model.layers[0].mlp.up_proj
    assert linear.weight.numel() * linear.weight.element_size() == 64 * 128 / 2
    assert short.get_input_embeddings().weight.dtype == torch.float32
    save_adapter(add_adapter(short, LORA, 1), tmp_path / "adapter")
    assert "Peft" in type(load_variant(base, tmp_path / "adapter", hardware)).__name__
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        quantized = load_base(base, hardware).eval()(ids).logits
        record(base, whole(params.model))
        exact = load_base(base, hardware).eval()(ids).logits
    error = (quantized - exact).norm() / exact.norm()
    assert 0.001 < error < 0.3


@needs_bitsandbytes
def test_gradients_after_a_pass_without_gradients(base, params):
    """As stages run: `complete` and `has_positionwise_head` come before training."""
    ids, gradients = torch.arange(20, 40)[None], []
    for whole in (False, True):
        model = load_base(base, params.hardware)
        if whole:
            model.dequantize()
        policy = add_adapter(model, LORA, 1)
        with torch.no_grad():
            policy.eval()(ids)
        torch.manual_seed(1)
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        policy.train()(ids).logits.log_softmax(-1)[..., 7].sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.requires_grad})
    short, exact = gradients
    assert short.keys() == exact.keys() and len(short) == 28
    for name, gradient in exact.items():
        torch.testing.assert_close(short[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@needs_bitsandbytes
def test_sft_and_dpo_on_4_bits(base, params, tmp_path):
    tokenizer, hardware = load_tokenizer(base), params.hardware
    policy = add_adapter(load_base(base, hardware), LORA, 1)
    rows = [{"input_ids": [5 + i] * 20, "labels": [IGNORED] * 10 + [7] * 10} for i in range(2)]
    from transformers import TrainingArguments

    trainer = supervised_trainer(
        policy,
        hardware,
        args=TrainingArguments(**common_arguments(params.sft, hardware, 1, tmp_path / "run")),
        train_dataset=rows,
        data_collator=partial(pad_supervised, pad_id=0),
    )
    run(trainer, tmp_path / "curves")
    save_adapter(policy, tmp_path / "sft")
    policy = load_adapter(load_base(base, hardware), tmp_path / "sft", trainable=True)
    before = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
    assert any(p.abs().sum() > 0 for name, p in before.items() if "lora_B" in name), "SFT moved the adapter"
    prepare(policy, hardware, 48)
    pairs = [{"prompt_ids": [5 + i] * 9, "chosen_ids": [6] * 9, "rejected_ids": [7] * 9} for i in range(2)]
    reference = identity(base, tmp_path / "sft", hardware)
    logps = complete(policy, pairs, tmp_path / "logps.parquet", None, reference, hardware, 0)
    trainer = make_trainer(
        policy, tokenizer, with_reference(pairs, logps), params.dpo, hardware, 1, tmp_path / "dpo-run"
    )
    # Raises if the first loss is not ln 2, as with an adapter rounded to bf16.
    run(trainer, tmp_path / "curves")
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    after = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert {p.dtype for p in after.values()} == {torch.float32}
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) >= len(before) / 2, "a step of 1e-5 is not lost"
