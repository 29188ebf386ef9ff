"""The lean trainer gives the loss and gradients of the plain one, on every architecture that it serves."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
)

from stages.modeling.collate import IGNORED, by_length, pad_supervised
from stages.modeling.cpu import quick_dropout
from stages.modeling.supervised import predicts, projecting, projects_alone, supervised_trainer, token_loss
from stages.params import Hardware

HARDWARE = Hardware("cpu", "fp32", 1, 4, False, 5)
SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
DECODER = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**DECODER, sliding_window=5)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**DECODER)),
    # The cap is low enough to bend random logits.
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**DECODER, final_logit_softcapping=0.05, sliding_window=5)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=2)),
    "bert": lambda: BertLMHeadModel(BertConfig(**SMALL, is_decoder=True, hidden_dropout_prob=0.0,
                                               attention_probs_dropout_prob=0.0)),
}  # fmt: skip


def make(name: str):
    torch.manual_seed(1)
    return MODELS[name]()


def rows(count: int = 12) -> list[dict[str, list[int]]]:
    """Examples of 4 to 26 tokens, of which some carry a loss, never the first."""
    draw = torch.Generator().manual_seed(3)
    examples = []
    for i in range(count):
        ids = torch.randint(1, 96, (4 + 7 * i % 23,), generator=draw).tolist()
        labels = [token if t and (t + i) % 3 == 0 else IGNORED for t, token in enumerate(ids)]
        examples.append({"input_ids": ids, "labels": labels})
    return examples


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_plain_forward_with_labels(name):
    batch = pad_supervised(rows(), pad_id=0)
    plain, lean = make(name), make(name)
    expected = plain(**batch).loss
    expected.backward()
    kept = predicts(batch["labels"])
    with projecting(lean.get_output_embeddings(), kept):
        outputs = lean(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert outputs.logits.shape == (int(kept.sum()), 96)
    loss = token_loss(outputs, batch["labels"])
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    ours = gradients(lean)
    for weight, gradient in gradients(plain).items():
        torch.testing.assert_close(ours[weight], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_the_trainer_is_a_plain_step_on_the_whole_batch(name, tmp_path):
    """Three micro-batches, dealt by length, against one forward pass over all rows in their order."""
    plain, lean = make(name), make(name)
    batch = pad_supervised(rows(), pad_id=0)
    plain(**batch).loss.backward()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=3,
        use_cpu=True, learning_rate=0.1, optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant", report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    before = {key: weight.detach().clone() for key, weight in lean.named_parameters()}
    trainer = supervised_trainer(
        lean, HARDWARE, args=arguments, train_dataset=rows(), data_collator=lambda some: pad_supervised(some, 0)
    )
    trainer.train()
    for key, weight in lean.named_parameters():
        gradient = gradients(plain).get(key)
        if gradient is not None:
            torch.testing.assert_close(weight.detach(), before[key] - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_a_model_without_a_head_of_its_own_is_trained_plainly_with_one_warning(tmp_path):
    class Mixing(LlamaForCausalLM):
        """Subtracts from each position's logits those of the first: no position stands alone."""

        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits - output.logits[:, :1]
            return output

    torch.manual_seed(1)
    model = Mixing(LlamaConfig(**DECODER))
    assert not projects_alone(model, HARDWARE)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.warns(UserWarning, match="Mixing: no head was found") as found:
        trainer = supervised_trainer(model, HARDWARE, args=arguments, train_dataset=rows())
    assert type(trainer) is Trainer
    assert sum("no head" in str(one.message) for one in found) == 1


def test_micro_batches_dealt_by_length_hold_every_row_once():
    examples = rows()
    batches = [pad_supervised(examples[i : i + 4], 0) for i in (0, 4, 8)]
    dealt = by_length(batches)
    assert len(dealt) == 3

    def contents(some) -> list[tuple]:
        return sorted(
            (tuple(ids[mask.bool()].tolist()), tuple(labels[mask.bool()].tolist()))
            for one in some
            for ids, labels, mask in zip(one["input_ids"], one["labels"], one["attention_mask"], strict=True)
        )

    assert contents(dealt) == contents(batches)
    assert sum(one["input_ids"].numel() for one in dealt) < sum(one["input_ids"].numel() for one in batches)
    assert all(bool((one["labels"][one["attention_mask"] == 0] == IGNORED).all()) for one in dealt)


def test_quick_dropout_drops_its_share_and_keeps_the_mean():
    dropout = quick_dropout()(0.1)
    torch.manual_seed(4)
    x = torch.ones(1003, 997, requires_grad=True)
    y = dropout(x)
    assert float((y == 0).float().mean()) == pytest.approx(0.1, abs=1e-3)
    assert float(y.mean()) == pytest.approx(1, abs=1e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    # Neighbours, which come from one random number, fall out independently.
    dropped = (y == 0).flatten()
    assert float((dropped[1:] & dropped[:-1]).float().mean()) == pytest.approx(0.01, abs=5e-4)
    torch.manual_seed(4)
    assert torch.equal(dropout(x), y)
    assert dropout.eval()(x) is x
