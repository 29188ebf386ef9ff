"""Where memory runs out, training and generation go on in smaller batches to the same result."""

from dataclasses import replace

import factory
import pytest
import small
import torch
from safetensors.torch import load_file

from attune.compute.memory import retry_batches_on_oom, retry_on_oom
from attune.config.schema import Hardware
from attune.data.pair import Pair
from attune.pairs.metrics import write_pairs
from attune.runtime.errors import ModelError
from attune.training.common import packed_forward
from attune.training.sft import trainer
from stages import dpo as dpo_stage
from stages import sft as sft_stage

HARDWARE = factory.hardware()
SFT = factory.sft(batch_size=8)
# The words of torch 2.13 on a CPU, and its class on a GPU.
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to …")
GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.parametrize("error", [CPU, GPU, MemoryError()])
def test_rows_that_do_not_fit_together_are_done_in_halves_each_once(error, capsys):
    lengths, done, tried = [7, 3, 9, 9, 2, 5, 8, 1], [], []

    def work(batch: list[int]) -> None:
        tried.append(len(batch) * max(lengths[row] for row in batch))
        if tried[-1] > 20:
            raise error
        done.extend(batch)

    retry_batches_on_oom(lengths, 80, work)
    assert sorted(done) == list(range(8)) and max(tried) <= 80
    # Once a size has failed, none as large is tried again.
    failed = [size for size in tried if size > 20]
    assert tried[: len(failed)] == failed == sorted(failed, reverse=True)
    assert capsys.readouterr().err.count("out of memory: continuing with batches of") == len(failed)


def test_a_row_that_does_not_fit_by_itself_is_named():
    def work(batch: list[int]) -> None:
        if 2 in batch:
            raise GPU

    with pytest.raises(ModelError, match=r"a row of 90 tokens does not fit into memory by itself: lower generate"):
        retry_batches_on_oom([5, 7, 90, 3], 400, work)
    with pytest.raises(RuntimeError, match="another error"):
        retry_batches_on_oom([5], 400, lambda _: (_ for _ in ()).throw(RuntimeError("another error")))


def test_micro_batches_are_halved_to_divisors_of_the_batch():
    sizes = []

    def attempt(hardware: Hardware) -> int:
        sizes.append(hardware.micro_batch_size)
        raise GPU

    with pytest.raises(ModelError, match=r"an example of up to 64 tokens \(sft\.max_length\) does not fit"):
        retry_on_oom(attempt, replace(HARDWARE, micro_batch_size=12), replace(SFT, batch_size=12))
    assert sizes == [12, 6, 3, 1]


def test_sft_that_runs_out_of_memory_reaches_the_same_adapter(tmp_path, monkeypatch, capsys):
    """48 dialogues in batches of 8; memory runs out after the checkpoint of step 5, where more than 2 are read."""
    monkeypatch.chdir(small.make(tmp_path, 48))
    params = factory.params(sft=SFT, lora=factory.lora(), seed=5)
    sft_stage.main("sft", params)
    whole = load_file("models/sft/adapter_model.safetensors")
    small.recorded_by_dvc(tmp_path)
    loss, calls = trainer.packed_loss, []

    def limited(outputs, labels, num_items_in_batch=None):
        calls.append(len(labels))
        if len(calls) > 10 and len(labels) > 2:
            raise CPU
        return loss(outputs, labels, num_items_in_batch)

    monkeypatch.setattr(trainer, "packed_loss", limited)
    sft_stage.main("sft", params)
    said = capsys.readouterr().err
    assert "out of memory with micro-batches of 4: continuing with 2" in said and "checkpoint-5" in said
    for name, weight in load_file("models/sft/adapter_model.safetensors").items():
        torch.testing.assert_close(weight, whole[name], rtol=0, atol=1e-5)


def test_dpo_that_runs_out_of_memory_reaches_the_same_adapter(tmp_path, monkeypatch, capsys):
    """48 pairs in batches of 8; memory runs out after the checkpoint of step 5, where more than 2 are laid out."""
    monkeypatch.chdir(small.make(tmp_path, 48))
    dialogues = [small.dialogue(number) for number in range(48)]
    write_pairs(
        [Pair(one.id, 1, one.turns[:3], one.turns[3].text, small.text(500 + i), "sad", "joyful", "train/x")
         for i, one in enumerate(dialogues)], tmp_path / "data/pairs/e1.parquet",
    )  # fmt: skip
    write_pairs([], tmp_path / "data/pairs/e1.valid.parquet")
    rounds = {"e1": factory.dpo_round(init="models/base")}
    params = factory.params(dpo=factory.dpo(batch_size=8), rounds=rounds, lora=factory.lora(), seed=5)
    dpo_stage.main("e1", params)
    whole = load_file("models/dpo/e1/adapter_model.safetensors")
    small.recorded_by_dvc(tmp_path)
    output, calls = packed_forward.packed_output, []

    def limited(model, batch):
        calls.append(len(batch["predictors"]) // 2)
        if len(calls) > 10 and calls[-1] > 2:
            raise CPU
        return output(model, batch)

    monkeypatch.setattr(packed_forward, "packed_output", limited)
    dpo_stage.main("e1", params)
    said = capsys.readouterr().err
    assert "out of memory with micro-batches of 4: continuing with 2" in said and "checkpoint-5" in said
    for name, weight in load_file("models/dpo/e1/adapter_model.safetensors").items():
        torch.testing.assert_close(weight, whole[name], rtol=0, atol=1e-5)
