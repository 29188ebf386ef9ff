"""The trainer of SFT gives the loss and gradients of a plain forward pass, on every architecture."""

import itertools
import random
from dataclasses import replace
from functools import partial

import factory
import pytest
import torch
import transformers

from attune.compute.process import autocast
from attune.config.schema import Hardware
from attune.cpu.dropout import quick_dropout
from attune.cpu.optimize import optimize_for_cpu, optimize_packing_for_cpu
from attune.models.bert_decoder import AS_DECODER, decoder_class
from attune.runtime.errors import UserError
from attune.training.common.collate import IGNORED, by_length, cuts, pad_supervised
from attune.training.common.packed_forward import accept_packed_batches
from attune.training.common.trainer import common_arguments
from attune.training.sft.trainer import (
    drops,
    has_positionwise_head,
    logits_only_at,
    loss_positions,
    pack_supervised,
    packed_loss,
    packs,
    supervised_trainer,
    token_loss,
)

HARDWARE = factory.hardware()
BF16 = replace(HARDWARE, dtype="bf16")
SFT = factory.sft()
SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
DECODER = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER, tie_word_embeddings=True)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**DECODER, sliding_window=5)),
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**DECODER)),
    # The softcap is low enough to change random logits.
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**DECODER, final_logit_softcapping=0.05, sliding_window=5)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL, num_key_value_heads=2)),
    "bert": lambda: decoder_class()(transformers.BertConfig(**SMALL, **AS_DECODER)),
    # Not packed: padded rows.
    "granite": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=3.0)
    ),
}  # fmt: skip


def make(name: str):
    torch.manual_seed(1)
    return MODELS[name]()


def rows(count: int = 12) -> list[dict[str, list[int]]]:
    """Examples of 4 to 26 tokens; the loss mask covers some of them, never the first."""
    draw = torch.Generator().manual_seed(3)
    examples = []
    for i in range(count):
        ids = torch.randint(1, 96, (4 + 7 * i % 23,), generator=draw).tolist()
        labels = [token if t and (t + i) % 3 == 0 else IGNORED for t, token in enumerate(ids)]
        examples.append({"input_ids": ids, "labels": labels})
    return examples


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_equal_the_plain_forward(name):
    batch = pad_supervised(rows(), pad_id=0)
    plain, lean = make(name), make(name)
    expected = plain(**batch).loss
    expected.backward()
    kept = loss_positions(batch["labels"])
    with logits_only_at(lean.get_output_embeddings(), kept):
        outputs = lean(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert outputs.logits.shape == (int(kept.sum()), 96)
    loss = token_loss(outputs, batch["labels"])
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    ours = gradients(lean)
    for weight, gradient in gradients(plain).items():
        torch.testing.assert_close(ours[weight], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "compiled"), [*((name, False) for name in MODELS), pytest.param("llama", True, marks=pytest.mark.slow)]
)
def test_step_equals_a_plain_step(name, compiled, tmp_path):
    """Three micro-batches by length against a single forward pass over all rows in their order."""
    plain, lean = make(name), make(name)
    batch = pad_supervised(rows(), pad_id=0)
    plain(**batch).loss.backward()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=3,
        use_cpu=True, learning_rate=0.1, optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant", report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    before = {key: weight.detach().clone() for key, weight in lean.named_parameters()}
    hardware = replace(HARDWARE, compile=compiled)
    trainer = supervised_trainer(
        lean, hardware, args=arguments, train_dataset=rows(), data_collator=lambda some: pad_supervised(some, 0)
    )
    trainer.train()
    assert compiled == any(module._compiled_call_impl is not None for module in lean.modules())
    for key, weight in lean.named_parameters():
        gradient = gradients(plain).get(key)
        if gradient is not None:
            torch.testing.assert_close(weight.detach(), before[key] - 0.1 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_dialogues_with_a_common_beginning_have_the_gradients_of_a_plain_forward(name):
    common = list(range(1, 8))
    some = [
        {"input_ids": common + row["input_ids"], "labels": [IGNORED] * len(common) + row["labels"]} for row in rows()
    ]
    batch = pad_supervised(some, pad_id=0)
    plain, lean = make(name), make(name)
    plain(**batch).loss.backward()
    optimize_packing_for_cpu(lean, HARDWARE)
    accept_packed_batches(lean)
    packed = pack_supervised(batch, share=True)
    # Once in place of twelve times, and without the last token of a dialogue, which predicts nothing.
    assert packed["packed_ids"].numel() == sum(len(row["input_ids"]) for row in some) - 11 * len(common) - 12
    packed_loss(lean(**packed), batch["labels"]).backward()
    ours = gradients(lean)
    for weight, gradient in gradients(plain).items():
        torch.testing.assert_close(ours[weight], gradient, rtol=1e-4, atol=1e-7)


def test_a_batch_without_a_loss_has_a_gradient_of_zero():
    batch = pad_supervised([{"input_ids": [0, 0], "labels": [IGNORED, IGNORED]}] * 2, pad_id=0)
    model = make("llama")
    optimize_packing_for_cpu(model, HARDWARE)
    accept_packed_batches(model)
    loss = packed_loss(model(**pack_supervised(batch, share=True)), batch["labels"], torch.tensor(7))
    loss.backward()
    assert float(loss.detach()) == 0 and all(not gradient.any() for gradient in gradients(model).values())


def test_what_is_packed_and_what_shares_its_beginning():
    from peft import LoraConfig, get_peft_model

    assert packs(make("llama"), HARDWARE) and not packs(make("granite"), HARDWARE)
    assert not packs(make("llama"), replace(HARDWARE, compile=True))
    assert not packs(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER, attention_dropout=0.1)), HARDWARE
    )
    for rate in (0.0, 0.5):
        config = LoraConfig(r=4, lora_dropout=rate, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(make("llama"), config)
        assert packs(model, HARDWARE) and drops(model) == bool(rate)
        optimize_for_cpu(model, HARDWARE)
        assert drops(model) == bool(rate)


def test_no_positionwise_head(tmp_path):
    class Mixing(transformers.GraniteForCausalLM):
        """Subtracts the first position's logits from each position's: the head is not position-wise."""

        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits - output.logits[:, :1]
            return output

    torch.manual_seed(1)
    model = Mixing(transformers.GraniteConfig(**SMALL))
    assert not has_positionwise_head(model, HARDWARE)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.warns(UserWarning, match="Mixing has no position-wise head") as caught:
        trainer = supervised_trainer(model, HARDWARE, args=arguments, train_dataset=rows())
    assert type(trainer) is transformers.Trainer
    assert sum("position-wise head" in str(warning.message) for warning in caught) == 1


def test_by_length_keeps_every_row():
    examples = rows()
    batches = [pad_supervised(examples[i : i + 4], 0) for i in (0, 4, 8)]
    dealt = by_length(batches)
    assert len(dealt) == 3

    def contents(some) -> list[tuple]:
        return sorted(
            (tuple(ids[mask.bool()].tolist()), tuple(labels[mask.bool()].tolist()))
            for batch in some
            for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)
        )

    assert contents(dealt) == contents(batches)
    assert sum(batch["input_ids"].numel() for batch in dealt) < sum(batch["input_ids"].numel() for batch in batches)
    assert all(bool((batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()) for batch in dealt)


@pytest.mark.parametrize("seed", range(5))
def test_cuts_have_the_least_padding(seed):
    draw = random.Random(seed)
    lengths = sorted((draw.randint(3, 40) for _ in range(11)), reverse=True)
    most = 4 * lengths[0]

    def padded(sizes) -> list[int]:
        return [size * lengths[sum(sizes[:i])] for i, size in enumerate(sizes)]

    every = (list(sizes) for sizes in itertools.product(range(1, 12), repeat=3) if sum(sizes) == 11)
    least = min(sum(padded(sizes)) for sizes in every if max(padded(sizes)) <= most)
    sizes = cuts(lengths, 3, most)
    assert (len(sizes), sum(sizes)) == (3, 11)
    assert sum(padded(sizes)) == least and max(padded(sizes)) <= most


def test_cuts_of_equal_lengths():
    assert cuts([7] * 12, 3, 28) == [4, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_dropout_rate_and_mean(dtype):
    dropout = quick_dropout()(0.1)
    torch.manual_seed(4)
    x = torch.ones(1003, 997, dtype=dtype, requires_grad=True)
    y = dropout(x)
    assert y.dtype == dtype
    assert float((y == 0).float().mean()) == pytest.approx(0.1, abs=1e-3)
    # 1 / 0.9 is 1.109 in bf16.
    assert float(y.detach().float().mean()) == pytest.approx(1, abs=1e-3 + (dtype == torch.bfloat16) * 2**-8)
    # Neighbours share a random number, but are dropped independently.
    dropped = (y == 0).flatten()
    assert float((dropped[1:] & dropped[:-1]).float().mean()) == pytest.approx(0.01, abs=5e-4)
    gradient = torch.randn(x.shape, dtype=dtype)
    y.backward(gradient)
    assert torch.equal(x.grad == 0, (y == 0) | (gradient == 0))
    assert torch.equal(x.grad, (y != 0) * gradient * (1 / 0.9))
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_dropout_is_seeded(dtype):
    dropout, x = quick_dropout()(0.1), torch.randn(64, 33, dtype=dtype)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(x)

    assert torch.equal(drawn(4), drawn(4))
    assert not torch.equal(drawn(4) == 0, drawn(5) == 0)


def adapted(name: str):
    model = make(name)
    torch.manual_seed(4)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(model, config)


def loss_and_gradients(model, hardware: Hardware) -> tuple[float, torch.Tensor]:
    with autocast(hardware):
        loss = model(**pad_supervised(rows(), pad_id=0)).loss
    loss.backward()
    return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients(model).values()])


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2", "bert"])
def test_bf16_rounds_like_autocast(name):
    suited = adapted(name)
    optimize_for_cpu(suited, BF16)
    shared = suited.get_input_embeddings().weight
    linear = [module.weight for module in suited.modules() if type(module) is torch.nn.Linear]
    frozen = [weight for weight in linear if not weight.requires_grad and weight is not shared]
    assert frozen and {weight.dtype for weight in frozen} == {torch.bfloat16}
    assert {weight.dtype for weight in suited.parameters() if weight.requires_grad} == {torch.float32}
    exact_loss, exact = loss_and_gradients(adapted(name), HARDWARE)
    plain_loss, plain = loss_and_gradients(adapted(name), BF16)
    loss, ours = loss_and_gradients(suited, BF16)
    rounding = float((plain - exact).norm())
    assert 0 < rounding < 0.1 * float(exact.norm())
    assert float((ours - exact).norm()) < 1.5 * rounding
    assert float((ours - plain).norm()) < 1.5 * rounding
    # bf16 has 8 bits of precision.
    assert loss == pytest.approx(plain_loss, rel=2**-8) == pytest.approx(exact_loss, rel=2**-8)


def test_optimize_for_cpu_is_idempotent():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(make("llama"), config)
    optimize_for_cpu(model, BF16)

    def state() -> tuple:
        torch.manual_seed(7)
        modules = [(id(module), type(module), len(module._forward_pre_hooks)) for module in model.modules()]
        loss, gradient = loss_and_gradients(model, BF16)
        model.zero_grad()
        return modules, loss, gradient.tolist()

    once = state()
    optimize_for_cpu(model, BF16)
    assert state() == once


def weights_of(model) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.requires_grad])


def test_bf16_training_rounds_like_autocast(tmp_path):
    def trained(hardware: Hardware, kind) -> torch.Tensor:
        model = adapted("llama")
        arguments = transformers.TrainingArguments(
            **common_arguments(SFT, hardware, 5, tmp_path) | {"save_strategy": "no"}
        )
        collator = partial(pad_supervised, pad_id=0)
        kind(model, args=arguments, train_dataset=rows(), data_collator=collator).train()
        return weights_of(model)

    start, exact = weights_of(adapted("llama")), trained(HARDWARE, transformers.Trainer)
    plain = trained(BF16, transformers.Trainer)
    ours = trained(BF16, lambda model, **changes: supervised_trainer(model, BF16, **changes))
    rounding = float((plain - exact).norm())
    assert 0 < rounding < 0.2 * float((exact - start).norm())
    assert float((ours - exact).norm()) < 1.5 * rounding


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [(64, 16, 1, (16, 4)), (64, 16, 2, (16, 2)), (64, 16, 8, (8, 1)), (4, 16, 1, (4, 1)), (6, 1, 3, (1, 2))],
)
def test_effective_batch_on_several_processes(batch, micro, processes, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    sft, hardware = replace(SFT, batch_size=batch), replace(HARDWARE, micro_batch_size=micro)
    arguments = common_arguments(sft, hardware, 5, tmp_path)
    assert (arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]) == expected


@pytest.mark.parametrize(("batch", "micro", "processes"), [(4, 4, 3), (2, 4, 4), (12, 4, 2)])
def test_indivisible_batch(batch, micro, processes, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    sft, hardware = replace(SFT, batch_size=batch), replace(HARDWARE, micro_batch_size=micro)
    with pytest.raises(UserError, match=rf"sft\.batch_size = {batch} cannot be shared by {processes} processes"):
        common_arguments(sft, hardware, 5, tmp_path)
