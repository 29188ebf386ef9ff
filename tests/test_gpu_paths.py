"""What only a run on GPUs reaches, tried without one: FSDP2 and DDP in a process group of one, devices of files."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from dpo_models import DPO, HARDWARE, PAIRS, make_policy, make_tokenizer, with_made_up_reference

from attune.models.loading import load_adapter
from attune.runtime.launch import accelerate_environment
from attune.training.common.resume import last_checkpoint
from attune.training.common.trainer import run, set_up_ranks
from attune.training.dpo.packed_forward import unwrap_peft
from attune.training.dpo.packed_trainer import accept_packed_batches, collate_pairs
from attune.training.dpo.trainer import make_trainer

FSDP = Path(__file__).parents[1] / "conf/accelerate/fsdp.yaml"


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(policy, precision, monkeypatch):
    """`policy`, sharded as Accelerate does with conf/accelerate/fsdp.yaml and the settings of `set_up_ranks`."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    for name, value in accelerate_environment(FSDP, 1).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    if precision != "no":
        plugin.set_mixed_precision(precision)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        ddp_handler=SimpleNamespace(),
        mixed_precision=precision,
        is_main_process=True,
        device=torch.device("cpu"),
    )
    set_up_ranks(SimpleNamespace(accelerator=accelerator))
    return fsdp2_prepare_model(accelerator, policy)


def step(policy):
    """Log-probabilities of the replies of `PAIRS`, after a backward pass."""
    log_probs = policy(**collate_pairs(with_made_up_reference(PAIRS), 0, 32, varlen=False)).log_probs
    (log_probs.sum(1) @ torch.arange(1, 9.0)).backward()
    return log_probs.detach()


def gradients(policy):
    whole = {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in whole.items()}


@pytest.mark.parametrize("name", ["llama", "gemma"], ids=["own head", "tied head"])
def test_log_probabilities_and_gradients_under_fsdp_are_those_of_a_whole_model(name, alone, monkeypatch):
    plain = make_policy(name)
    accept_packed_batches(unwrap_peft(plain))
    parts = make_policy(name)
    accept_packed_batches(unwrap_peft(parts))
    parts = sharded(parts, "no", monkeypatch)
    # Twice: the parameters that a step has gathered are parts again after it.
    for _ in range(2):
        torch.testing.assert_close(step(parts), step(plain), rtol=1e-5, atol=1e-5)
    theirs, ours = gradients(plain), gradients(parts)
    assert ours.keys() == theirs.keys() != set()
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=key)


@pytest.mark.parametrize("name", ["llama", "gemma"], ids=["own head", "tied head"])
def test_log_probabilities_under_fsdp_in_bf16_are_fp32(name, alone, monkeypatch):
    policy = make_policy(name)
    accept_packed_batches(unwrap_peft(policy))
    plain = step(policy)
    log_probs = step(sharded(policy, "bf16", monkeypatch))
    assert log_probs.dtype == torch.float32
    # Of bf16 all have 8 bits; sums over replies would be off by whole nats.
    assert not torch.equal(log_probs, log_probs.bfloat16().float())
    torch.testing.assert_close(log_probs, plain, rtol=0.1, atol=0.2)


def test_gradients_are_in_memory_once_under_ddp(alone, tmp_path):
    trainer = make_trainer(make_policy("llama"), make_tokenizer(), with_made_up_reference(), DPO, HARDWARE, 5, tmp_path)
    set_up_ranks(trainer)
    view = trainer.accelerator.ddp_handler.gradient_as_bucket_view
    policy = torch.nn.parallel.DistributedDataParallel(trainer.model, gradient_as_bucket_view=view)
    policy(**trainer.data_collator(with_made_up_reference())).log_probs.sum().backward()
    found = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    assert len(found) == 28 and len({gradient.untyped_storage().data_ptr() for gradient in found}) == 1


def test_an_adapter_is_read_onto_no_gpu(tmp_path, monkeypatch):
    """PEFT infers "cuda" where no device is named, which safetensors takes for the first GPU on every rank."""

    def inferred():
        raise AssertionError("a device was inferred")

    monkeypatch.setattr("peft.peft_model.infer_device", inferred)
    monkeypatch.setattr("peft.utils.save_and_load.infer_device", inferred)
    tokenizer, pairs = make_tokenizer(), with_made_up_reference()
    make_policy("llama").save_pretrained(tmp_path / "adapter")
    start = None
    for number in ("first", "second"):
        base = make_policy("llama").unload()
        policy = load_adapter(base, tmp_path / "adapter", trainable=True)
        trainer = make_trainer(policy, tokenizer, pairs, DPO, HARDWARE, 5, tmp_path / number)
        # The made-up reference is not the model.
        trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if "FirstLoss" in repr(c)))
        run(trainer, tmp_path / "curves", start)
        start = last_checkpoint(tmp_path / number)
    assert start is not None and trainer.state.epoch == 2
