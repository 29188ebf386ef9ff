"""BERT's bidirectional encoder run as a decoder: causal attention, the head of masked language modelling, chat.

An encoder becomes a decoder by a mask: with `is_decoder` a position attends to itself and what is before it, and the
head, which told the word at a masked place, tells the next one. A dialogue opens with [CLS], what the user says with
[unused1] and a reply with [unused2], places that BERT's vocabulary keeps free; a reply ends with [SEP]. Weights that
have only ever seen both sides do not form sentences that way: stage `base` trains them on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.models.chat_template import role_tokenizer
from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import BertLMHeadModel, PreTrainedTokenizerFast

PAD, UNKNOWN, CLS, SEP, MASK, USER, ASSISTANT = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "[unused2]"
)  # fmt: skip
HEAD = "cls.predictions."
# The adapter's dropout is the only one, as with models that were made decoders.
AS_DECODER: dict[str, Any] = {"is_decoder": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@cache
def decoder_class() -> type[BertLMHeadModel]:
    """transformers' `BertLMHeadModel` whose states are right for those who multiply them by the head themselves.

    TRL's fused head calls `base_model` and multiplies what it gives by the weights of `get_output_embeddings`. BERT has
    a dense layer, an activation and a norm between the two (`cls.predictions.transform`): where they are passed over,
    log-probabilities are off by nats and these weights get no gradient, without a word. Here `base_model` ends behind
    them.
    """
    from torch import nn
    from transformers import BertLMHeadModel

    class Transformed(nn.Module):
        """BERT with the transform behind it; all else is BERT's."""

        def __init__(self, bert: nn.Module, transform: nn.Module) -> None:
            super().__init__()
            self.bert, self.transform = bert, transform

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.bert, name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = self.bert(*args, **kwargs)
            output.last_hidden_state = self.transform(output.last_hidden_state)
            return output

    class BertForCausalLM(BertLMHeadModel):
        @property
        def base_model(self) -> nn.Module:
            return Transformed(self.bert, self.cls.predictions.transform)

        # transformers looks for both in `base_model`, which here is made anew at each call.
        def get_input_embeddings(self) -> nn.Embedding:
            return self.bert.embeddings.word_embeddings

        def set_input_embeddings(self, value: Any) -> None:
            self.bert.embeddings.word_embeddings = value

    return BertForCausalLM


def make_decoder(folder: Path, seed: int) -> tuple[Any, PreTrainedTokenizerFast]:
    """The encoder in `folder` as a decoder, in fp32, and its tokenizer.

    A checkpoint of the encoder alone has no head; the weights of its transform are then drawn at random by `seed`. The
    vocabulary's are the embeddings', in either case.

    Raises:
        ModelError: the model is no BERT, lacks weights other than the head's, or its vocabulary has no free places.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, set_seed

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type != "bert":
        raise ModelError(f"model.as_decoder = true is for BERT; {folder} has the architecture {config.model_type!r}")
    tokenizer = decoder_tokenizer(
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer, config.max_position_embeddings
    )
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config.update(AS_DECODER | ids)
    set_seed(seed)
    kind: Any = decoder_class()
    with _silent("transformers"):  # which calls a checkpoint without a head corrupted
        model, found = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith(HEAD)):
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
    """A tokenizer of BERT's vocabulary with the chat template.

    Special tokens that are added to a text are [CLS] before it and nothing behind it: an encoder's [SEP] would end what
    a decoder is to go on with (lm-evaluation-harness takes a prompt's tokens so).

    Raises:
        ModelError: a special token or a free place is not in the vocabulary.
    """
    from tokenizers.processors import TemplateProcessing

    specials = (PAD, UNKNOWN, CLS, SEP, USER, ASSISTANT)
    if missing := [token for token in specials if backend.token_to_id(token) is None]:
        raise ModelError(f"the vocabulary has no {', '.join(missing)}: it is none of BERT's")
    backend.post_processor = TemplateProcessing(
        single=f"{CLS} $A", pair=f"{CLS} $A $B", special_tokens=[(CLS, backend.token_to_id(CLS))]
    )
    # Sentence encoders cut and fill every text to the length that they were trained with.
    backend.no_truncation()
    backend.no_padding()
    tokens = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": CLS, "eos_token": SEP}
    # With spaces cleaned up, "i ' m" reads "i'm".
    return role_tokenizer(backend, USER, ASSISTANT, max_positions, clean_up_tokenization_spaces=True, **tokens)


def train_wordpiece(texts: Iterable[str], vocab_size: int, max_positions: int) -> PreTrainedTokenizerFast:
    """A decoder's tokenizer: a cased WordPiece of at most `vocab_size` tokens; equal texts give equal tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    texts = list(texts)
    backend = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = [PAD, USER, ASSISTANT, UNKNOWN, CLS, SEP, MASK]
    letters = sorted({letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace()})
    # tokenizers 0.23 numbers the letters inside words in the order of a hash map, which differs from run to run, and
    # breaks ties by number: named as special tokens they are numbered as they stand here.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*specials, *(f"##{letter}" for letter in letters)], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    made = Tokenizer(models.WordPiece(backend.get_vocab(), unk_token=UNKNOWN))
    made.normalizer, made.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    made.decoder = decoders.WordPiece()
    return decoder_tokenizer(made, max_positions)
