"""What only a run on GPUs reaches, tried without one: FSDP2 and DDP in a process group of one, devices, casts, disk."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import transformers
from dpo_models import DPO, HARDWARE, PAIRS, make_policy, make_tokenizer, with_made_up_reference
from torch.utils._python_dispatch import TorchDispatchMode

from attune.compute.process import rank_device, set_up_process, use_deterministic_kernels
from attune.models.loading import load_adapter, store_adapter_in_bf16
from attune.runtime.errors import ModelError
from attune.runtime.launch import accelerate_environment
from attune.runtime.sealed import damage, seal
from attune.training.common.packed_forward import head_size, unwrap_peft
from attune.training.common.resume import last_checkpoint
from attune.training.common.trainer import export_checkpoint, run, set_up_ranks
from attune.training.dpo.packed_batches import collate_pairs
from attune.training.dpo.packed_trainer import accept_packed_batches
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
    policy = sharded(policy, "bf16", monkeypatch)
    # Two micro-batches whose gradients are summed.
    policy.set_requires_gradient_sync(False)
    step(policy)
    policy.set_requires_gradient_sync(True)
    log_probs = step(policy)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(policy).values())
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


def test_each_rank_reads_weights_onto_its_own_gpu(monkeypatch):
    gpu = replace(HARDWARE, device="cuda")
    assert (rank_device(HARDWARE), rank_device(gpu)) == ("cpu", "cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (rank_device(HARDWARE), rank_device(gpu)) == ("cpu", "cuda:3")


class Casts(TorchDispatchMode):
    """Counts casts to another dtype."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_an_adapter_in_bf16_gives_the_same_bits_with_fewer_casts():
    policy = make_policy("llama").requires_grad_(False)
    for name, weight in policy.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.bfloat16()
    ids, found = torch.arange(3, 40)[None], []
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Casts() as casts:
            found.append((policy(input_ids=ids).logits, casts.count))
        store_adapter_in_bf16(policy)
    (logits, before), (same, after) = found
    assert torch.equal(logits, same) and logits.abs().max() > 0.1
    # A layer has seven adapted products. With fp32 both matrices of each, and the input twice, are cast.
    assert before - after >= 2 * 7 * 4


def test_a_gpu_without_bf16_is_named_before_anything_loads(monkeypatch):
    monkeypatch.setattr("attune.compute.process.keep_to_one_device", lambda: None)
    for name, value in {"is_available": True, "is_bf16_supported": False, "get_device_name": "Tesla V100"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value, **_: value)
    with pytest.raises(ModelError, match=r"compute\.dtype = 'bf16', which Tesla V100 does not have .*=fp32"):
        set_up_process(replace(HARDWARE, device="cuda", dtype="bf16"))


def test_deterministic_kernels_are_asked_for(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        use_deterministic_kernels()
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_flex_attention_is_tried_with_the_heads_of_the_model():
    assert head_size(transformers.GemmaConfig()) == 256
    assert head_size(transformers.MistralConfig()) == 128
    assert head_size(SimpleNamespace(hidden_size=576, num_attention_heads=9)) == 64


def test_an_out_shares_its_bytes_with_the_checkpoint_which_stays_whole(tmp_path):
    checkpoint, out = tmp_path / "checkpoint-5", tmp_path / "models/dpo/e1"
    (checkpoint / "reference").mkdir(parents=True)
    (checkpoint / "adapter_model.safetensors").write_bytes(b"weights")
    (checkpoint / "adapter_config.json").write_text('{"target_modules": ["q", "k"]}', encoding="utf-8")
    # As DVC's cache of symbolic links has them.
    (tmp_path / "cached").write_bytes(b"reference")
    (checkpoint / "reference/adapter_model.safetensors").symlink_to(tmp_path / "cached")
    seal(checkpoint)
    export_checkpoint(checkpoint, out)
    for name in ("adapter_model.safetensors", "reference/adapter_model.safetensors"):
        assert (out / name).samefile(checkpoint / name) and not (out / name).is_symlink()
    # Written anew, in an order that does not depend on the process.
    assert json.loads((out / "adapter_config.json").read_text(encoding="utf-8")) == {"target_modules": ["k", "q"]}
    assert damage(checkpoint) is None and not (out / "manifest.json").exists()
