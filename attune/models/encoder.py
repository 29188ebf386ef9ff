"""Load the bidirectional encoder that is the base of the classifiers and of BERTScore (section `encoder`)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from attune.compute.process import set_up_process
from attune.models.weights import file_errors, layout, package_version, weight_files, weights_hash
from attune.runtime.errors import ModelError
from attune.runtime.imports import import_transformers

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Encoder, Hardware, Weights

# Characters of the made encoder; any other is [UNK].
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'-"
MADE_LAYERS = 6
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_encoder(encoder: Encoder, hardware: Hardware) -> tuple[PreTrainedModel, Tokenizer]:
    """The encoder with fp32 weights on `compute.device`, in eval mode, and its fast tokenizer (which has offsets).

    Raises:
        ModelError: as `layout` and `read`, its weights cannot be read, or `compute.device` is cuda and no GPU is
            visible.
    """
    set_up_process(hardware)
    import torch
    from transformers import AutoModel

    if encoder.source == "made":
        model, tokenizer = made()
    else:
        folder = layout(encoder, "encoder")
        _, tokenizer = read(folder, "encoder")
        with file_errors(folder):
            model = AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    return model.to(hardware.device).eval(), tokenizer


def read(folder: Path, section: str) -> tuple[Any, Tokenizer]:
    """The configuration and the tokenizer of the encoder in `folder`.

    Raises:
        ModelError: they cannot be read, or the model is a decoder, whose states know nothing of the tokens to come.
    """
    import_transformers()
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    with file_errors(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    kind = config.model_type
    decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    if decodes or (kind in CAUSAL and kind not in MASKED):
        raise ModelError(
            f"the model in {folder} (section {section}) is no encoder but a language model ({kind}): take one whose "
            "attention is bidirectional, such as BERT or RoBERTa"
        )
    return config, tokenizer


def encoder_signature(encoder: Weights, section: str = "encoder") -> dict[str, str]:
    """The signature of what uses the encoder: its name, its origin, and the hash of its weights.

    Raises:
        ModelError: as `layout`.
    """
    if encoder.source == "made":
        return {"encoder": encoder.name, "encoder_origin": "made", "encoder_sha256": _made_hash()}
    digest = weights_hash(weight_files(layout(encoder, section)))
    release = {"hub": encoder.revision, "package": package_version(str(encoder.package))}
    origin = " ".join(filter(None, (encoder.origin, release.get(encoder.source))))
    return {"encoder": encoder.name, "encoder_origin": origin, "encoder_sha256": digest}


def made() -> tuple[Any, Tokenizer]:
    """A BERT of six layers of width 16 with seeded random weights, and a WordPiece tokenizer of single characters."""
    import torch
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    pieces = [*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    backend = Backend(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    ends = [(token, pieces.index(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=512, **dict(zip(names, SPECIALS, strict=True))
    )
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": MADE_LAYERS,
        "num_attention_heads": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertModel(BertConfig(vocab_size=len(pieces), **sizes)), tokenizer


def _made_hash() -> str:
    """A hash of the made encoder's weights."""
    digest = hashlib.sha256()
    for weight in made()[0].state_dict().values():
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()
