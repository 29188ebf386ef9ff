"""The CPU kernels against the plain equations: log-probabilities, norms, attention per document, interface."""

import ast
from pathlib import Path

import factory
import pytest
import torch
from dpo_models import gradients
from dpo_models import make_model as make_architecture

from attune.cpu import grouped_attention, token_log_probs
from attune.cpu.casts import CachedCast
from attune.cpu.document_attention import document_attention
from attune.cpu.norm import patch_norms_for_cpu, rms_norm
from attune.cpu.packed_weights import pack_weights
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
@pytest.mark.parametrize("logits", [1, 39, 2**24])
def test_token_log_probs(logits, biased, softcap, monkeypatch):
    monkeypatch.setattr(token_log_probs, "CHUNK_LOGITS", logits)
    torch.manual_seed(1)
    states, weight = torch.randn(7, 5, requires_grad=True), torch.randn(13, 5)
    bias, targets = torch.randn(13) if biased else None, torch.tensor([0, 12, 3, 3, 7, 1, 2])
    values = token_log_probs.token_log_probs().apply(states, weight, bias, targets, softcap)
    expected = plain(states, weight, bias, targets, softcap)
    for value, expected_value in zip(values, expected, strict=True):
        torch.testing.assert_close(value, expected_value)
    scale = torch.randn(7)
    ours, theirs = (torch.autograd.grad((some[0] * scale).sum(), states)[0] for some in (values, expected))
    torch.testing.assert_close(ours, theirs)
    assert not any(value.requires_grad for value in values[1:])


def test_certain_and_impossible_tokens_have_finite_gradients():
    states, weight = torch.tensor([[300.0], [300.0]], requires_grad=True), torch.tensor([[1.0], [-1.0], [0.0]])
    values = token_log_probs.token_log_probs().apply(states, weight, None, torch.tensor([0, 1]), None)
    assert values[0].tolist() == [0.0, -600.0]
    (gradient,) = torch.autograd.grad(values[0].sum(), states)
    torch.testing.assert_close(gradient, torch.tensor([[0.0], [-2.0]]))


@pytest.mark.parametrize("rows", [1, 7, 32, 300])
def test_packed_weights_multiply_as_dense_ones(rows):
    torch.manual_seed(1)
    embedding = torch.nn.Embedding(300, 24)
    model = torch.nn.ModuleList([embedding, torch.nn.Linear(24, 40), torch.nn.Linear(24, 300, bias=False)])
    model[2].weight = embedding.weight
    states, dense = torch.randn(2, rows, 24), embedding.weight
    with torch.no_grad():
        expected = [linear(states) for linear in model[1:]]
        for _ in range(2):
            pack_weights(model)
        for linear, values in zip(model[1:], expected, strict=True):
            assert linear.weight.is_mkldnn
            torch.testing.assert_close(linear(states), values)
    assert embedding.weight is dense and not dense.is_mkldnn
    with pytest.raises(RuntimeError, match="packed for inference: load it again"):
        model[1](states.requires_grad_())


def test_cast_is_made_again_for_a_changed_weight():
    cast, weight = CachedCast(), torch.nn.Parameter(torch.ones(2))
    first = cast(weight, torch.bfloat16)
    assert cast(weight, torch.bfloat16) is first
    with torch.no_grad():
        weight.mul_(2)
    assert cast(weight, torch.bfloat16).tolist() == [2, 2]
    assert cast(weight, torch.float64).dtype == torch.float64


def test_rms_norm():
    torch.manual_seed(1)
    states, weight = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    expected = states / (states.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight
    torch.testing.assert_close(rms_norm().apply(states, weight, 0.1), expected)
    assert torch.autograd.gradcheck(lambda states: rms_norm().apply(states, weight, 0.1), [states])
    model = make_model(train_tokenizer(["a b c"], 300, 64), TINY, 1).requires_grad_(False)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).logits
    patch_norms_for_cpu(model)
    torch.testing.assert_close(model(ids).logits, before)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_document_attention(heads, softcap, shared):
    torch.manual_seed(1)
    inputs = [torch.randn(8, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, heads, heads)]
    masks = [torch.full((n, n), float("-inf"), dtype=torch.float64).triu(1) for n in (5, 1, 2)]
    if shared:  # the second and third document begin with the first
        masks[1:] = (torch.nn.functional.pad(mask, (5, 0)) for mask in masks[1:])

    def alone(query, key, value, mask):
        if mask.shape[1] > len(mask):
            key, value = (torch.cat([states[:5], own]) for states, own in zip(inputs[1:], (key, value), strict=True))
        q, k, v = (states.transpose(0, 1) for states in (query, key, value))
        k, v = (states.repeat_interleave(4 // heads, 0) for states in (k, v))
        scores = q @ k.mT * 0.7
        scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
        return ((scores + mask).softmax(-1) @ v).transpose(0, 1)

    def attend(*inputs):
        return document_attention().apply(*inputs, masks, 0.7, softcap)

    documents = zip(*(states.split([5, 1, 2]) for states in inputs), masks, strict=True)
    torch.testing.assert_close(attend(*inputs), torch.cat([alone(*document) for document in documents]))
    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "bert"])
def test_grouped_attention_is_transformers_own(name):
    """Left-padded rows; shared key heads, windows and softcaps among the architectures."""
    ids = torch.arange(40).view(2, 20) % 90
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    results = []
    for use in (lambda model: model.set_attn_implementation("eager"), grouped_attention.use):
        model = make_architecture(name).eval()
        use(model)
        logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        logits.square().mean().backward()
        results.append((logits.detach(), *gradients(model).values()))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def imports(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_kernels_have_one_interface():
    """Other packages import `attune.cpu.optimize` alone, and the kernels do not import training code."""
    root = Path(__file__).parents[1]
    callers = 0
    for path in [path for folder in ("attune", "stages", "benchmarks") for path in (root / folder).rglob("*.py")]:
        if path.parent == root / "attune/cpu":
            assert not [name for name in imports(path) if name.startswith("attune.training")], path
        else:
            from_cpu = {name for name in imports(path) if name.startswith("attune.cpu")}
            assert from_cpu <= {"attune.cpu.optimize"}, path
            callers += bool(from_cpu)
    assert callers > 3
