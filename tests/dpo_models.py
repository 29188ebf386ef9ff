"""Small models of every supported architecture, preference pairs for them, and TRL's trainer on both."""

import factory
import torch
import transformers

from attune.models.bert_decoder import AS_DECODER, decoder_class
from attune.models.tiny import train_tokenizer
from attune.training.common.packed_forward import prepare
from attune.training.dpo.packed_trainer import encoded_pairs_trainer, packed_trainer
from attune.training.dpo.trl_losses import config_arguments

VOCABULARY, WINDOW, MAX_LENGTH = 96, 6, 32
HARDWARE = factory.hardware()
DPO = factory.dpo(beta=0.5, epochs=3, max_length=32)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
MODELS = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED | {"sliding_window": WINDOW}),
    "gemma": ("Gemma", GROUPED),
    "gemma2": ("Gemma2", GROUPED | ALTERNATING | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3", GROUPED | ALTERNATING),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2} | ALTERNATING | {"use_sliding_window": True}),
    "qwen3": ("Qwen3", GROUPED),
    "bert": (),
}
# Contexts and replies longer than the window, replies that begin alike, one-token replies, a reply that is cut at 32.
PAIRS = [
    {"prompt_ids": [5, 6, 7, 8, 9, 10, 11, 12, 13], "chosen_ids": [20, 21, 22, 2], "rejected_ids": [30, 31, 2]},
    {"prompt_ids": [5], "chosen_ids": [40, 41, 42, 43, 44, 45, 46, 47, 48, 2], "rejected_ids": [2]},
    {"prompt_ids": [9, 8, 7], "chosen_ids": [50, 51, 52, 2], "rejected_ids": [50, 51, 60, 61, 62, 63, 64, 65, 2]},
    {"prompt_ids": list(range(60, 84)), "chosen_ids": [2], "rejected_ids": list(range(10, 30))},
]


def with_made_up_reference(pairs=PAIRS):
    return [pair | {"ref_chosen_logps": -20.0 - i, "ref_rejected_logps": -21.5 + i} for i, pair in enumerate(pairs)]


def make_model(name: str):
    torch.manual_seed(3)
    if name == "bert":
        model = decoder_class()(transformers.BertConfig(**SIZES, **AS_DECODER))
    else:
        family, changes = MODELS[name]
        kind = getattr(transformers, family + "ForCausalLM")
        config = getattr(transformers, family + ("TextConfig" if family == "Gemma3" else "Config"))
        model = kind(config(**SIZES, **changes))
    for weight in model.parameters():  # at std 0.02 the output would hardly depend on positions and attention
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def make_policy(name: str):
    model = make_model(name)
    torch.manual_seed(4)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(model, config).eval()


def make_tokenizer():
    return train_tokenizer(["a b c"], 300, 64)


def trl_trainer(name: str, folder, packed: bool, dpo=DPO):
    """`trainer_of` on a policy and pairs of this module."""
    return trainer_of(make_policy(name), make_tokenizer(), with_made_up_reference(), folder, packed, dpo, MAX_LENGTH)


def trainer_of(policy, tokenizer, rows, folder, packed: bool, dpo, max_length: int):
    """A policy in TRL's trainer, on packed batches or on TRL's own, with the reference from the columns of the data."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig

    config = DPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, max_length=max_length,
                       activation_checkpointing=False, remove_unused_columns=False,
                       **config_arguments(dpo))  # fmt: skip
    if packed:
        prepare(policy, HARDWARE, max_length)
    trainer = (packed_trainer(dpo) if packed else encoded_pairs_trainer())(
        model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.precompute_ref_logps = True
    return trainer


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
