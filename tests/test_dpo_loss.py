"""The loss of DPO against TRL's implementation and the paper's gradient."""

import math

import pytest
import torch
from dpo_models import gradients, trl_trainer, with_made_up_reference

from attune.training.common.packed_forward import packed_output, unwrap_peft
from attune.training.dpo.loss import INITIAL_LOSS, logp_gradients, sigmoid_loss

LOGGED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return trl_trainer("llama", tmp_path_factory.mktemp("trl"), packed=True)


def assert_equals_trl(ours, trl_loss, trainer, before):
    """Loss, mean rewards, mean margin and accuracy; `before` is the number of values that TRL had logged."""
    assert ours.loss.item() == pytest.approx(trl_loss.item(), rel=1e-6)
    values = (ours.chosen_rewards, ours.rejected_rewards, ours.margins, ours.accuracies.double())
    for name, value in zip(LOGGED, values, strict=True):
        (logged,) = trainer._metrics["train"][name][before:]
        assert value.mean().item() == pytest.approx(logged, rel=1e-6, abs=1e-6), name


class GivenLogProbs(torch.nn.Module):
    """A model whose output for every batch is given: TRL's loss then is a function of these tensors alone."""

    def __init__(self, log_probs):
        super().__init__()
        self.log_probs = torch.nn.Parameter(log_probs)

    def forward(self, **batch):
        from trl.trainer.utils import FusedCausalLMOutput

        zeros = torch.zeros_like(self.log_probs)
        return FusedCausalLMOutput(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


@pytest.mark.parametrize(("pairs", "tokens", "beta", "scale"), [(1, 1, 0.1, 1), (7, 5, 0.5, 3), (64, 9, 0.01, 50)])
def test_random_tensors_give_trls_loss_and_gradient(pairs, tokens, beta, scale, trainer, monkeypatch):
    torch.manual_seed(pairs)
    log_probs = scale * torch.randn(2 * pairs, tokens, dtype=torch.float64)
    reference = scale * torch.randn(2, pairs, dtype=torch.float64)
    ids = torch.ones(2 * pairs, 1 + tokens, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": ids, "completion_mask": ids,
             "ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1],
             "real": torch.ones(pairs, dtype=torch.bool)}  # fmt: skip
    monkeypatch.setattr(trainer, "beta", beta)
    trainer.model.train()
    model, before = GivenLogProbs(log_probs), len(trainer._metrics["train"][LOGGED[0]])
    trl_loss = trainer._compute_loss(model, batch, False)
    (theirs,) = torch.autograd.grad(trl_loss, model.log_probs)
    per_token = log_probs.clone().requires_grad_()
    ours = sigmoid_loss(*per_token.sum(1).chunk(2), *reference, beta)
    assert_equals_trl(ours, trl_loss, trainer, before)
    (by_autograd,) = torch.autograd.grad(ours.loss, per_token)
    written_out = torch.cat(logp_gradients(ours.margins.detach(), beta))[:, None].expand_as(per_token)
    torch.testing.assert_close(by_autograd, theirs, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(written_out, theirs, rtol=1e-6, atol=1e-12)


def test_real_batch_gives_trls_loss_and_its_gradient_in_the_paper(trainer):
    policy = trainer.model.train()
    batch = trainer.data_collator(with_made_up_reference())
    before = len(trainer._metrics["train"][LOGGED[0]])
    policy.zero_grad()
    trl_loss = trainer.compute_loss(policy, dict(batch))
    trl_loss.backward()
    theirs = gradients(policy)
    logps = packed_output(unwrap_peft(policy), batch).log_probs.sum(1)
    ours = sigmoid_loss(*logps.chunk(2), batch["ref_chosen_logps"], batch["ref_rejected_logps"], trainer.beta)
    assert 0 < float(ours.accuracies.float().mean()) < 1
    assert_equals_trl(ours, trl_loss, trainer, before)
    # -beta sigmoid(-m) [grad log pi(y_w|x) - grad log pi(y_l|x)], from the gradients of each reply alone.
    names, weights = zip(*((n, w) for n, w in policy.named_parameters() if w.requires_grad), strict=True)
    written_out = [torch.zeros_like(weight) for weight in weights]
    for logp, factor in zip(logps, torch.cat(logp_gradients(ours.margins.detach(), trainer.beta)), strict=True):
        for total, gradient in zip(written_out, torch.autograd.grad(logp, weights, retain_graph=True), strict=True):
            total += factor * gradient
    assert theirs.keys() == set(names)
    for name, gradient in zip(names, written_out, strict=True):
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-6, atol=1e-6 * float(theirs[name].abs().max()))


def test_loss_of_known_pairs():
    """A pair with margin 1, and one whose policy is the reference: ln(1 + 1/e) and ln 2."""
    chosen, rejected = torch.tensor([-1.0, -7.0]), torch.tensor([-3.0, -9.0])
    ours = sigmoid_loss(chosen, rejected, torch.tensor([-2.0, -7.0]), torch.tensor([-2.0, -9.0]), beta=0.5)
    assert ours.margins.tolist() == [1, 0]
    assert ours.loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)
    assert ours.accuracies.tolist() == [True, False]
    assert pytest.approx(math.log(2)) == INITIAL_LOSS


def test_ordered_pairs_weigh_less():
    """Pairs ordered wrongly weigh up to beta, undecided ones half of it, those ordered by a wide margin nothing."""
    raise_chosen, lower_rejected = logp_gradients(torch.tensor([-20.0, 0.0, 20.0]), beta=0.3)
    assert (-3 * raise_chosen).tolist() == pytest.approx([0.3, 0.15, 0], abs=1e-6)
    assert torch.equal(lower_rejected, -raise_chosen)
