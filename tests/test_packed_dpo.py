"""Packed pairs against the same pairs in stock TRL's padded batches: log-probabilities, losses, gradients, runs."""

import math
import os
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from dpo_models import (
    DPO,
    HARDWARE,
    MAX_LENGTH,
    MODELS,
    PAIRS,
    VOCABULARY,
    gradients,
    make_policy,
    make_tokenizer,
    trl_trainer,
    with_made_up_reference,
)

from attune.models.loading import compile_layers
from attune.runtime.distributed import is_main_process, process_group
from attune.training.common.packed_forward import packed_output, prepare, unsupported_reason, unwrap_peft
from attune.training.common.packing import SHARED
from attune.training.common.trainer import run
from attune.training.dpo.packed_batches import collate_pairs
from attune.training.dpo.packed_trainer import encoded_pairs_trainer
from attune.training.dpo.reference_logps import complete, with_reference
from attune.training.dpo.trainer import make_trainer

FAMILIES = ("llama", "mistral", "gemma", "bert")
# What two processes train: a family, its pairs and loss. Of three pairs in batches of two, the last batch leaves one
# rank without a pair.
ON_TWO_RANKS = {
    **{family: (family, PAIRS, {}) for family in FAMILIES},
    "bco_pair": ("llama", PAIRS[:3], {"loss": "bco_pair", "sft_weight": 0.5}),
    "simpo": ("llama", PAIRS[:3], {"loss": "simpo", "sft_weight": 0.5}),
    "orpo": ("llama", PAIRS[:3], {"loss": "orpo"}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def plain_log_probs(model, pairs=PAIRS) -> list[torch.Tensor]:
    """Of the tokens of every reply, all chosen, all rejected: context and reply alone in the model's own forward."""
    log_probs = []
    for side in ("chosen_ids", "rejected_ids"):
        for pair in pairs:
            start = len(pair["prompt_ids"])
            ids = (pair["prompt_ids"] + pair[side])[:MAX_LENGTH]
            logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
            log_probs.append(logits.float().log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])[:, 0])
    return log_probs


def collated(pairs, varlen):
    return collate_pairs(pairs, pad_id=0, max_length=MAX_LENGTH, varlen=varlen)


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys() != set()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()), msg=name)


# A system prompt before every context, which is packed once.
BEGUN = [pair | {"prompt_ids": [91, 92, 93, *pair["prompt_ids"]]} for pair in PAIRS]


@pytest.mark.parametrize(("varlen", "pairs"), [(False, PAIRS), (True, PAIRS), (True, BEGUN)])
@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_plain_forward(name, varlen, pairs):
    plain = plain_log_probs(make_policy(name), pairs)
    model = make_policy(name)
    assert unsupported_reason(model) is None
    if varlen:
        prepare(model, HARDWARE, MAX_LENGTH)
    batch = collated(with_made_up_reference(pairs), varlen)
    assert int((batch["packed_documents"] == SHARED).sum()) == (3 if pairs is BEGUN else 0)
    output = packed_output(unwrap_peft(model), batch)
    for log_probs, expected in zip(output.log_probs, plain, strict=True):
        torch.testing.assert_close(log_probs[: len(expected)], expected, rtol=1e-5, atol=1e-5)
        assert bool((log_probs[len(expected) :] == 0).all())
    weights = torch.arange(1, 9.0)
    (output.log_probs.sum(1) @ weights).backward()
    other = make_policy(name)
    (torch.stack([log_probs.sum() for log_probs in plain_log_probs(other, pairs)]) @ weights).backward()
    assert_same_gradients(gradients(model), gradients(other))


@pytest.mark.slow
def test_compiled_layers_give_the_same():
    results = []
    for compiled in (False, True):
        model = make_policy("llama")
        compile_layers(model, replace(HARDWARE, compile=compiled))
        output = packed_output(unwrap_peft(model), collated(with_made_up_reference(), varlen=False))
        (output.log_probs.sum(1) @ torch.arange(1, 9.0)).backward()
        results.append((output.log_probs.detach(), gradients(model)))
    (plain, theirs), (compiled, ours) = results
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    assert_same_gradients(ours, theirs)
    assert any(module._compiled_call_impl is not None for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_loss_gradients_and_log_equal_stock_trl(name, tmp_path):
    results = []
    for packed in (False, True):
        trainer = trl_trainer(name, tmp_path / str(packed), packed)
        batch = trainer.data_collator(with_made_up_reference())
        loss = trainer.compute_loss(trainer.model.train(), batch)
        loss.backward()
        log = {key: values[0] for key, values in trainer._metrics["train"].items() if key != "num_tokens"}
        results.append((loss.item(), log, gradients(trainer.model)))
    (their_loss, their_log, their_grads), (our_loss, our_log, our_grads) = results
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    assert our_log == pytest.approx(their_log, rel=1e-4, abs=1e-5)
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen", "entropy", "logits/rejected"} <= our_log.keys()
    assert_same_gradients(our_grads, their_grads)


@pytest.mark.parametrize(("varlen", "pairs"), [(False, PAIRS), (True, PAIRS), (True, BEGUN)])
@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_are_independent_of_their_batch(name, varlen, pairs):
    policy = make_policy(name)
    if varlen:
        prepare(policy, HARDWARE, MAX_LENGTH)

    def logps(pairs):
        return packed_output(unwrap_peft(policy), collated(pairs, varlen)).log_probs.sum(1)

    pairs = with_made_up_reference(pairs)
    together, reversed_ = logps(pairs).view(2, 4), logps(pairs[::-1]).view(2, 4)
    torch.testing.assert_close(together.T, torch.stack([logps([pair]) for pair in pairs]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reversed_.flip(1), together, rtol=1e-5, atol=1e-5)


def test_unsupported_model_falls_back_with_one_warning(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2))
    policy = get_peft_model(bloom, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(policy, tokenizer, PAIRS, DPO, HARDWARE, 5, tmp_path)
    messages = [str(w.message) for w in caught if "falls back" in str(w.message)]
    assert len(messages) == 1 and "the architecture bloom is none of llama" in messages[0]
    run(trainer, tmp_path / "curves")
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_no_reference_is_kept_in_memory(tokenizer, tmp_path):
    trainer = make_trainer(make_policy("llama"), tokenizer, with_made_up_reference(), DPO, HARDWARE, 5, tmp_path)
    assert trainer.ref_model is None
    assert set(trainer.model.peft_config) == {"default"}
    assert not [name for name, _ in trainer.model.named_parameters() if ".ref." in name]


def random_pairs(number: int, seed: int) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)

    def tokens(most):
        length = int(torch.randint(1, most, (1,), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [{"prompt_ids": tokens(16), "chosen_ids": tokens(8), "rejected_ids": tokens(8)} for _ in range(number)]


def test_three_epochs_end_where_stock_trl_does(tokenizer, tmp_path):
    """Stock TRL with its live reference."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig

    from attune.training.common.trainer import common_arguments

    train, held_out, margins = random_pairs(16, 1), random_pairs(24, 2), []
    dpo = replace(DPO, learning_rate=1e-3)
    ours, theirs = make_policy("llama"), make_policy("llama")
    logps = complete(ours, train, tmp_path / "logps.parquet", None, "r", HARDWARE, 0)
    trainers = [make_trainer(ours, tokenizer, with_reference(train, logps), dpo, HARDWARE, 5, tmp_path / "a")]
    config = DPOConfig(beta=dpo.beta, max_length=32, **common_arguments(dpo, HARDWARE, 5, tmp_path / "b"))
    trainers[0].remove_callback(next(c for c in trainers[0].callback_handler.callbacks if "StopAfter" in repr(c)))
    trainers.append(encoded_pairs_trainer()(
        model=theirs, args=config, train_dataset=Dataset.from_list(train), processing_class=tokenizer))  # fmt: skip
    for trainer in trainers:
        trainer.train()
        assert trainer.state.global_step == 12
        unwrap_peft(trainer.model).set_attn_implementation("eager")
        with torch.no_grad():
            logps = [log_probs.sum() for log_probs in plain_log_probs(trainer.model.eval(), held_out)]
        margins.append(torch.stack(logps[:24]) - torch.stack(logps[24:]))
    torch.testing.assert_close(margins[0], margins[1], rtol=1e-3, atol=1e-2)
    assert torch.equal(margins[0] > 0, margins[1] > 0)


def trained(folder: Path, case: str, micro: int) -> dict[str, torch.Tensor]:
    """Two steps of two pairs at most, on `WORLD_SIZE` processes that each take `micro` of them."""
    name, pairs, loss = ON_TWO_RANKS[case]
    hardware, dpo = replace(HARDWARE, micro_batch_size=micro), replace(DPO, batch_size=2, max_length=64, **loss)
    policy = make_policy(name)
    if dpo.has_reference:
        pairs = with_reference(pairs, complete(policy, pairs, folder / "logps.parquet", None, "r", hardware, 0))
    trainer = make_trainer(policy, make_tokenizer(), pairs, dpo, hardware, 5, folder)
    run(trainer, folder / "curves")
    return {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Of every family and kind of loss, in the same two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port),
               __file__, str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for case, (family, _, _) in ON_TWO_RANKS.items():
        one, start = trained(tmp_path / case, case, 2), dict(make_policy(family).named_parameters())
        for name, trained_weight in one.items():
            weight = trained_weight.detach()
            assert float((weight - start[name].detach()).abs().max()) > 1e-3
            # Of the whole weight: Adam divides by the size of a gradient, which magnifies rounding where it is tiny.
            assert float((two[case][name].detach() - weight).norm() / weight.norm()) < 1e-5


if __name__ == "__main__":
    with process_group("cpu"):
        weights = {case: trained(Path(sys.argv[1]) / "ranks" / case, case, 1) for case in ON_TWO_RANKS}
    if is_main_process():
        torch.save(weights, Path(sys.argv[1]) / "two.pt")
