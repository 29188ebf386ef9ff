"""Our LoRA layer and the shortened last layer against PEFT's and transformers' own forwards."""

import factory
import pytest
import torch

from attune.cpu.last_layer import narrow, reading_at
from attune.cpu.lora import lora_product, patch_lora_for_cpu
from attune.models.tiny import make_model, train_tokenizer

TINY = factory.tiny(vocab_size=300, hidden_size=16, intermediate_size=32, max_positions=64, max_length=32)


def adapted(dropout: float = 0.0):
    tokenizer = train_tokenizer(["a b c"], 300, 64)
    model = make_model(tokenizer, TINY, 1)
    torch.manual_seed(2)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("one_input", [True, False])
def test_product_has_the_gradient_of_its_function(one_input, bias):
    torch.manual_seed(1)
    x, weight, a, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 5), (7, 5), (2, 5), (7, 2)))
    shift = torch.randn(7, dtype=torch.float64) if bias else None

    def product(x, a, b):
        dropped = x if one_input else x * 0.5
        return lora_product().apply(x, dropped, weight, shift, a, b, 0.75)

    expected = torch.nn.functional.linear(x, weight, shift) + 0.75 * (x if one_input else x * 0.5) @ a.T @ b.T
    torch.testing.assert_close(product(x, a, b), expected)
    assert torch.autograd.gradcheck(product, [one.requires_grad_() for one in (x, a, b)])


def test_layers_answer_as_pefts_switched_on_off_and_merged():
    ours, theirs, ids = adapted().eval(), adapted().eval(), torch.tensor([[5, 6, 7, 8]])
    patch_lora_for_cpu(ours)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    with ours.disable_adapter(), theirs.disable_adapter():
        off = ours(ids).logits
        torch.testing.assert_close(off, theirs(ids).logits)
    assert not torch.allclose(ours(ids).logits, off)
    ours.merge_adapter()
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)


def test_dropout_reaches_the_adapter_alone():
    ours, theirs, ids = adapted(0.5).train(), adapted(0.5).train(), torch.tensor([[5, 6, 7, 8]])
    patch_lora_for_cpu(ours)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        logits = model(ids).logits
        logits.sum().backward()
        found.append([logits, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_last_layer_is_right_at_its_places_and_afterwards_everywhere():
    model, ids, places = adapted().get_base_model().eval(), torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([1, 4])
    whole = model(ids).logits
    narrow(model)
    narrow(model)
    with reading_at(model, places):
        part = model(ids).logits
    torch.testing.assert_close(part[:, places], whole[:, places])
    assert not torch.allclose(part, whole)
    assert torch.equal(model(ids).logits, whole)
