"""The LoRA kernel and the narrowed last layer against the forward passes of PEFT and transformers."""

import factory
import pytest
import torch

from attune.cpu.last_layer import last_layer_at, narrow_last_layer
from attune.cpu.lora import lora_product, patch_lora_for_cpu
from attune.models.tiny import make_model, train_tokenizer

TINY = factory.tiny(vocab_size=300, hidden_size=16, intermediate_size=32, max_positions=64, max_length=32)


def make_policy(dropout: float = 0.0):
    tokenizer = train_tokenizer(["a b c"], 300, 64)
    model = make_model(tokenizer, TINY, 1)
    torch.manual_seed(2)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("same_input", [True, False])
def test_product_and_its_gradient(same_input, bias):
    torch.manual_seed(1)
    x, weight, a, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 5), (7, 5), (2, 5), (7, 2)))
    offset = torch.randn(7, dtype=torch.float64) if bias else None

    def product(x, a, b):
        dropped = x if same_input else x * 0.5
        return lora_product().apply(x, dropped, weight, offset, a, b, 0.75)

    expected = torch.nn.functional.linear(x, weight, offset) + 0.75 * (x if same_input else x * 0.5) @ a.T @ b.T
    torch.testing.assert_close(product(x, a, b), expected)
    assert torch.autograd.gradcheck(product, [tensor.requires_grad_() for tensor in (x, a, b)])


def test_layers_equal_pefts_enabled_disabled_and_merged():
    ours, theirs, ids = make_policy().eval(), make_policy().eval(), torch.tensor([[5, 6, 7, 8]])
    patch_lora_for_cpu(ours)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    with ours.disable_adapter(), theirs.disable_adapter():
        off = ours(ids).logits
        torch.testing.assert_close(off, theirs(ids).logits)
    assert not torch.allclose(ours(ids).logits, off)
    ours.merge_adapter()
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)


def test_dropout_applies_to_the_adapter_only():
    ours, theirs, ids = make_policy(0.5).train(), make_policy(0.5).train(), torch.tensor([[5, 6, 7, 8]])
    patch_lora_for_cpu(ours)
    results = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        logits = model(ids).logits
        logits.sum().backward()
        results.append([logits, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    for our_tensor, their_tensor in zip(*results, strict=True):
        torch.testing.assert_close(our_tensor, their_tensor)


def test_last_layer_at_indices():
    """Within the context the logits are right at the indices; after it they are right everywhere."""
    model, ids, indices = make_policy().get_base_model().eval(), torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([1, 4])
    whole = model(ids).logits
    narrow_last_layer(model)
    narrow_last_layer(model)
    with last_layer_at(model, indices):
        part = model(ids).logits
    torch.testing.assert_close(part[:, indices], whole[:, indices])
    assert not torch.allclose(part, whole)
    assert torch.equal(model(ids).logits, whole)
