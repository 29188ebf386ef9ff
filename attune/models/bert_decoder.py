"""BERT run as a decoder: causal attention, the head of masked language modelling, a chat template.

With `is_decoder` attention is causal: a position attends to itself and to earlier positions, and the head, which
predicted the token at a masked position, predicts the next token. A dialogue begins with [CLS], a user turn with
[unused1] and a reply with [unused2], which BERT's vocabulary reserves; a reply ends with [SEP]. Weights that were
trained with bidirectional attention do not generate sentences that way: stage `base` trains them further.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.models.chat_template import role_tokenizer
from attune.models.weights import file_errors
from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import BertLMHeadModel, PreTrainedTokenizerFast

PAD, UNKNOWN, CLS, SEP, MASK, USER, ASSISTANT = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "[unused2]"
)  # fmt: skip
HEAD = "cls.predictions."
# No dropout but the adapter's, as in models that are decoders from the start.
AS_DECODER: dict[str, Any] = {"is_decoder": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@cache
def decoder_class() -> type[BertLMHeadModel]:
    """transformers' `BertLMHeadModel`, with a `base_model` whose hidden states are those that the head multiplies.

    TRL's fused head computes logits = `base_model(...)` W, W being the weights of `get_output_embeddings`. BERT has a
    dense layer, an activation and a norm between the two (`cls.predictions.transform`). Without them log-probabilities
    would silently be wrong by nats, and their weights would get no gradient. Here `base_model` includes them.
    """
    from torch import nn
    from transformers import BertLMHeadModel

    class TransformedBert(nn.Module):
        """BERT followed by the transform; all other attributes are BERT's."""

        def __init__(self, bert: nn.Module, transform: nn.Module) -> None:
            super().__init__()
            self.bert, self.transform = bert, transform

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.bert, name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """BERT's output with the transformed hidden states."""
            output = self.bert(*args, **kwargs)
            output.last_hidden_state = self.transform(output.last_hidden_state)
            return output

    class BertForCausalLM(BertLMHeadModel):
        @property
        def base_model(self) -> nn.Module:
            """What the head multiplies: BERT and the transform."""
            return TransformedBert(self.bert, self.cls.predictions.transform)

        # transformers looks for both in `base_model`, which here is a new object at each call.
        def get_input_embeddings(self) -> nn.Embedding:
            return self.bert.embeddings.word_embeddings

        def set_input_embeddings(self, value: Any) -> None:
            self.bert.embeddings.word_embeddings = value

    return BertForCausalLM


def make_decoder(folder: Path, seed: int) -> tuple[Any, PreTrainedTokenizerFast]:
    """The encoder in `folder` as a decoder, in fp32, and its tokenizer.

    If the checkpoint has no head, the weights of its transform are random, seeded by `seed`. Its output weights are
    always tied to the embeddings.

    Raises:
        ModelError: files cannot be read, the architecture is not BERT, weights other than the head's are missing, or
            the vocabulary has no unused tokens.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, set_seed

    with file_errors(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type != "bert":
        raise ModelError(f"model.as_decoder = true is for BERT; {folder} has the architecture {config.model_type!r}")
    with file_errors(folder):
        given = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer = decoder_tokenizer(given.backend_tokenizer, config.max_position_embeddings)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config.update(AS_DECODER | ids)
    set_seed(seed)
    kind: Any = decoder_class()
    with _silent("transformers"):  # it reports a checkpoint without a head as corrupted
        model, loading = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(name for name in loading["missing_keys"] if not name.startswith(HEAD)):
        raise ModelError(f"{folder} lacks weights of BERT: {', '.join(missing[:3])}")
    return model, tokenizer


@contextmanager
def _silent(library: str) -> Iterator[None]:
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def decoder_tokenizer(backend: Backend, max_positions: int) -> PreTrainedTokenizerFast:
    """A tokenizer with BERT's vocabulary and the chat template.

    With special tokens, a text is tokenised as [CLS] and the text. An encoder's tokenizer appends [SEP], which would
    end the text that a decoder is to continue: lm-evaluation-harness tokenises its prompts that way.

    Raises:
        ModelError: a special or unused token is not in the vocabulary.
    """
    from tokenizers.processors import TemplateProcessing

    specials = (PAD, UNKNOWN, CLS, SEP, USER, ASSISTANT)
    if missing := [token for token in specials if backend.token_to_id(token) is None]:
        raise ModelError(f"the vocabulary has no {', '.join(missing)}: it is not BERT's")
    backend.post_processor = TemplateProcessing(
        single=f"{CLS} $A", pair=f"{CLS} $A $B", special_tokens=[(CLS, backend.token_to_id(CLS))]
    )
    # The tokenizers of sentence encoders truncate and pad every text to their training length.
    backend.no_truncation()
    backend.no_padding()
    tokens = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": CLS, "eos_token": SEP}
    # Decoding then gives "i'm", not "i ' m".
    return role_tokenizer(backend, USER, ASSISTANT, max_positions, clean_up_tokenization_spaces=True, **tokens)


def train_wordpiece(texts: Iterable[str], vocab_size: int, max_positions: int) -> PreTrainedTokenizerFast:
    """Train a cased WordPiece tokenizer of at most `vocab_size` tokens; equal texts give equal tokenizers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    texts = list(texts)
    backend = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = [PAD, USER, ASSISTANT, UNKNOWN, CLS, SEP, MASK]
    letters = sorted({letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace()})
    # tokenizers 0.23 assigns ids to the letters inside words in hash-map order, which differs between runs, and breaks
    # ties by id. As special tokens the letters get ids in this order.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*specials, *(f"##{letter}" for letter in letters)], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    # A new backend has the same vocabulary without these special tokens.
    plain = Tokenizer(models.WordPiece(backend.get_vocab(), unk_token=UNKNOWN))
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    plain.decoder = decoders.WordPiece()
    return decoder_tokenizer(plain, max_positions)
