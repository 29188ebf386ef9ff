"""What is one step of autograd on a CPU against the plain formula: log-probabilities, norms, attention by block."""

import factory
import pytest
import torch

from attune.cpu import token_log_probs
from attune.cpu.block_attention import by_block
from attune.cpu.norm import quicken_norms, rms_norm
from attune.models.tiny import make_model, train_tokenizer

TINY = factory.tiny(vocab_size=300, hidden_size=16, intermediate_size=32, max_positions=64, max_length=32)


def plain(states, weight, bias, targets, softcap):
    logits = states @ weight.T + (0 if bias is None else bias)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, targets[:, None])[:, 0], entropy, logits.mean(-1), logits.argmax(-1) == targets


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("logits", [1, 39, 2**20])
def test_log_probabilities_entropy_and_gradient_are_the_formulas(logits, biased, softcap, monkeypatch):
    monkeypatch.setattr(token_log_probs, "LOGITS", logits)
    torch.manual_seed(1)
    states, weight = torch.randn(7, 5, requires_grad=True), torch.randn(13, 5)
    bias, targets = torch.randn(13) if biased else None, torch.tensor([0, 12, 3, 3, 7, 1, 2])
    found = token_log_probs.token_log_probs().apply(states, weight, bias, targets, softcap)
    expected = plain(states, weight, bias, targets, softcap)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    scale = torch.randn(7)
    ours, theirs = (torch.autograd.grad((one[0] * scale).sum(), states)[0] for one in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert not any(one.requires_grad for one in found[1:])


def test_certain_and_impossible_tokens_have_finite_gradients():
    states, weight = torch.tensor([[300.0], [300.0]], requires_grad=True), torch.tensor([[1.0], [-1.0], [0.0]])
    found = token_log_probs.token_log_probs().apply(states, weight, None, torch.tensor([0, 1]), None)
    assert found[0].tolist() == [0.0, -600.0]
    (slope,) = torch.autograd.grad(found[0].sum(), states)
    torch.testing.assert_close(slope, torch.tensor([[0.0], [-2.0]]))


def test_weight_is_cast_again_once_it_is_written_to():
    held, weight = token_log_probs.HeldCast(), torch.nn.Parameter(torch.ones(2))
    first = held(weight, torch.bfloat16)
    assert held(weight, torch.bfloat16) is first
    with torch.no_grad():
        weight.mul_(2)
    assert held(weight, torch.bfloat16).tolist() == [2, 2]
    assert held(weight, torch.float64).dtype == torch.float64


def test_norm_has_the_gradient_of_its_function_and_is_that_of_the_model():
    torch.manual_seed(1)
    states, weight = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    expected = states / (states.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight
    torch.testing.assert_close(rms_norm().apply(states, weight, 0.1), expected)
    assert torch.autograd.gradcheck(lambda states: rms_norm().apply(states, weight, 0.1), [states])
    model = make_model(train_tokenizer(["a b c"], 300, 64), TINY, 1).requires_grad_(False)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).logits
    quicken_norms(model)
    torch.testing.assert_close(model(ids).logits, before)


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_attention_by_block_is_that_of_each_block_alone(heads, softcap):
    torch.manual_seed(1)
    rows = [torch.randn(8, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, heads, heads)]
    masks = [torch.full((n, n), float("-inf"), dtype=torch.float64).triu(1) for n in (5, 1, 2)]

    def alone(query, key, value, mask):
        q, k, v = (one.transpose(0, 1) for one in (query, key, value))
        k, v = (one.repeat_interleave(4 // heads, 0) for one in (k, v))
        scores = q @ k.mT * 0.7
        scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
        return ((scores + mask).softmax(-1) @ v).transpose(0, 1)

    def attend(*rows):
        return by_block().apply(*rows, masks, 0.7, softcap)

    blocks = zip(*(one.split([5, 1, 2]) for one in rows), masks, strict=True)
    torch.testing.assert_close(attend(*rows), torch.cat([alone(*block) for block in blocks]))
    assert torch.autograd.gradcheck(attend, rows)
