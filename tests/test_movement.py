"""What DPO moved, against the same numbers from the models' plain forward passes."""

import factory
import pytest
import torch
from dpo_models import DPO, HARDWARE, MAX_LENGTH, PAIRS, make_policy

from attune.training.common.packed_forward import prepare
from attune.training.common.packing import Document
from attune.training.dpo.movement import ROWS, compare, read

PARAMS = factory.params(dpo=DPO)


def policies(name):
    """The reference, and a policy with another adapter."""
    reference, policy = make_policy(name), make_policy(name)
    with torch.no_grad():
        for key, weight in policy.named_parameters():
            if "lora_B" in key:
                weight *= 1.2
    return reference.eval(), policy.eval()


def plain(model, context, reply):
    """Log-probabilities of the vocabulary at each token of a reply, (R, V)."""
    logits = model(input_ids=torch.tensor([[*context, *reply]])).logits[0, len(context) - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_equals_the_plain_forward_pass(name, monkeypatch):
    monkeypatch.setattr("attune.training.dpo.movement.ROWS", 7)  # so that rows of a reply are in two parts
    assert ROWS > 7
    sides = [(pair["prompt_ids"], pair[f"{side}_ids"][: MAX_LENGTH - len(pair["prompt_ids"])])
             for pair in PAIRS for side in ("chosen", "rejected")]  # fmt: skip
    margins, logps, ref_logps, divergences, entropies = [], ([], []), ([], []), [], []
    reference, policy = policies(name)
    with torch.no_grad():
        for number, (context, reply) in enumerate(sides):
            ours, theirs = plain(policy, context, reply), plain(reference, context, reply)
            tokens = torch.tensor(reply)[:, None]
            of_policy, of_reference = ours.gather(1, tokens)[:, 0], theirs.gather(1, tokens)[:, 0]
            margins.append(float((of_policy - of_reference).sum()))
            logps[number % 2].extend(of_policy.tolist())
            ref_logps[number % 2].extend(of_reference.tolist())
            if number % 2 == 0:
                divergences += (ours.exp() * (ours - theirs)).sum(-1).tolist()
                entropies += (-(ours.exp() * ours).sum(-1)).tolist()
    documents = [Document(sides[i][0], [sides[i][1], sides[i + 1][1]]) for i in range(0, len(sides), 2)]
    readings = []
    for model in (reference, policy):
        prepare(model, HARDWARE, MAX_LENGTH)
        readings.append(read(model, [documents[:1], documents[1:]], PARAMS, 0))
    start, moved = compare(readings[1], readings[0], [reply for _, reply in sides])
    mean = lambda values: pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-5)  # noqa: E731
    of_pairs = [chosen - rejected for chosen, rejected in zip(margins[::2], margins[1::2], strict=True)]
    assert moved.margin == mean(of_pairs)
    assert moved.accuracy == 100 * sum(margin > 0 for margin in of_pairs) / len(of_pairs)
    assert moved.kl == mean(divergences) and moved.kl > 1e-3
    assert (moved.chosen_logp, moved.rejected_logp) == (mean(logps[0]), mean(logps[1]))
    assert moved.entropy == mean(entropies)
    assert (start.margin, start.accuracy, start.kl) == (0, 50, 0)
    assert (start.chosen_logp, start.rejected_logp) == (mean(ref_logps[0]), mean(ref_logps[1]))
