"""Numbers that are none, and data with nothing to learn, end a stage with the cause."""

import pytest
import torch
from small import make
from test_damage import HARDWARE, LORA, SFT, dialogue

from attune.classifiers.common.fit import fit
from attune.models.loading import load_base, load_tokenizer
from attune.runtime.errors import UserError
from attune.training.common.resume import last_checkpoint
from attune.training.sft import fine_tune as sft_training


def fine_tune(folder, sft=SFT, dialogues=40, model=None):
    base = folder / "models/base"
    model = load_base(base, HARDWARE) if model is None else model
    some = [dialogue(number) for number in range(dialogues)]
    settings = (sft, LORA, HARDWARE, 5, folder / "checkpoints", folder / "curves")
    return sft_training.fine_tune(model, load_tokenizer(base), some, *settings)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_training_and_reaches_no_checkpoint(value, tmp_path, monkeypatch):
    """It comes at step 7: the checkpoint of step 5 is kept, and no later one is written."""
    from attune.training.sft import trainer

    make(tmp_path, 40)
    loss, calls = trainer.packed_loss, []

    def broken(outputs, labels, num_items_in_batch=None):
        calls.append(labels)
        # Two micro-batches a step.
        return loss(outputs, labels, num_items_in_batch) * (value if len(calls) > 12 else 1)

    monkeypatch.setattr(trainer, "packed_loss", broken)
    with pytest.raises(UserError, match=r"loss is (nan|inf) at or shortly before step 10: lower the learning rate"):
        fine_tune(tmp_path)
    assert last_checkpoint(tmp_path / "checkpoints").name == "checkpoint-5"
    assert not (tmp_path / "checkpoints/checkpoint-10").exists()


def test_the_loss_of_a_classifier_that_is_no_number_is_named(tmp_path):
    weight = torch.nn.Linear(1, 1)
    settings = {"epochs": 1, "batch_size": 2, "hardware": HARDWARE, "seed": "1:er", "checkpoint": tmp_path}
    groups = [(list(weight.parameters()), 0.1)]
    with pytest.raises(UserError, match="er, epoch 1: the loss is nan at step 1: lower the learning rates"):
        fit(weight, groups, [1] * 4, lambda _: weight(torch.full((1, 1), float("nan"))).mean(), **settings)
    with pytest.raises(UserError, match="er: there are no examples to train on"):
        fit(weight, groups, [], lambda _: weight(torch.ones(1, 1)).mean(), **settings)


def test_dialogues_without_a_token_to_learn_are_named(tmp_path):
    make(tmp_path, 4)
    with pytest.raises(UserError, match=r"none of 0 dialogues has a token of the assistant within sft\.max_length"):
        fine_tune(tmp_path, dialogues=0)
