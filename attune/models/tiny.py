"""Small models for tests, CI and laptops: a tokenizer trained here, and random weights of a standard architecture.

Llama, Mistral and Gemma have a byte-level BPE tokenizer; BERT has a WordPiece tokenizer (`bert_decoder`) and runs as a
decoder. With them the whole pipeline runs in minutes without a GPU and without a hub.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from attune.models.bert_decoder import AS_DECODER, decoder_class
from attune.models.chat_template import role_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from attune.config.schema import Tiny

PAD, BOS, EOS, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_positions: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most `vocab_size` tokens; equal texts give equal tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return role_tokenizer(bpe, USER, ASSISTANT, max_positions, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def make_model(tokenizer: PreTrainedTokenizerFast, tiny: Tiny, seed: int) -> PreTrainedModel:
    """A model of `tiny.architecture` with seeded random weights and tied embeddings."""
    from transformers import set_seed

    set_seed(seed)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return from_config(configuration(tiny, len(tokenizer), **ids))


def from_config(config: PretrainedConfig) -> PreTrainedModel:
    """A causal language model with random weights; for BERT of `decoder_class`."""
    from transformers import AutoModelForCausalLM

    make: Any = decoder_class() if config.model_type == "bert" else AutoModelForCausalLM.from_config
    model: PreTrainedModel = make(config)
    return model


def configuration(tiny: Tiny, vocab_size: int, **ids: int | None) -> PretrainedConfig:
    """The configuration of a model of `tiny.architecture`; `ids` are the ids of the special tokens.

    Each architecture keeps what distinguishes it: Mistral's sliding window (half of `tiny.max_positions`), Gemma's
    embeddings scaled by sqrt(hidden size) and norms scaled by 1 + weight, BERT's learned positions and the transform
    before its head.
    """
    from transformers import BertConfig, GemmaConfig, LlamaConfig, MistralConfig

    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": tiny.hidden_size,
        "intermediate_size": tiny.intermediate_size,
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "max_position_embeddings": tiny.max_positions,
        "tie_word_embeddings": True,
        **ids,
    }
    heads: dict[str, Any] = {"num_key_value_heads": tiny.heads, "head_dim": tiny.hidden_size // tiny.heads}
    match tiny.architecture:
        case "mistral":
            return MistralConfig(**common, **heads, sliding_window=tiny.max_positions // 2)
        case "gemma":
            return GemmaConfig(**common, **heads)
        case "llama":
            return LlamaConfig(**common, **heads)
        case "bert":
            return BertConfig(**common, **AS_DECODER)
