"""Load the base model, its tokenizer, and adapters on it. Weights are safetensors, and no remote code is run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.compute.process import set_up_process
from attune.models.quantization import in_4_bits, keep_differentiable
from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Hardware, Lora

RECORD = "base.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def origin(base: Path) -> tuple[str, str | None]:
    """Where the weights of the base model lie: (folder or hub id, commit), from the record that stage `base` writes."""
    record = json.loads((base / RECORD).read_text(encoding="utf-8"))
    return (record["hub_id"], record["commit"]) if record["hub_id"] else (str(base), None)


def quantization(base: Path) -> str | None:
    """How the linear layers of the base model are held, from its record: nf4; None: as they are."""
    found: str | None = json.loads((base / RECORD).read_text(encoding="utf-8")).get("quantization")
    return found


def load_tokenizer(base: Path) -> Tokenizer:
    """The base model's tokenizer, with a pad token.

    Raises:
        ModelError: its files cannot be read, it has no chat template, or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    source, commit = origin(base)
    with _loading(source):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=commit, trust_remote_code=False)
    if tokenizer.chat_template is None or tokenizer.eos_token is None:
        raise ModelError(f"{source} has no chat template or no EOS token: take an instruction-tuned model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(base: Path, hardware: Hardware) -> PreTrainedModel:
    """The base model on the CPU or GPU: fp32 weights on a CPU (bf16 comes from autocast), `hardware.dtype` on a GPU.

    Its linear layers are in 4 bits where the record of `base` says so (`quantization`).

    Raises:
        ModelError: `hardware.device` is cuda and there is none, the model is an encoder, it has no safetensors, it
            cannot be loaded without code of its own, or bitsandbytes is missing for a quantized one.
    """
    import torch

    set_up_process(hardware)
    source, commit = origin(base)
    in_bf16 = hardware.device == "cuda" and hardware.dtype == "bf16"
    settings = in_4_bits(hardware) if quantization(base) else {}
    with _loading(source):
        model = _model_class(source, commit).from_pretrained(
            source,
            revision=commit,
            dtype=torch.bfloat16 if in_bf16 else torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            **settings,
        )
    keep_differentiable(model)
    # transformers puts a quantized model onto its device itself.
    loaded: PreTrainedModel = model if settings else model.to(hardware.device)
    return loaded


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Turn what transformers says of files that it refuses into an error for people."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Its further lines say how to have the code run.
        first = str(error).strip().splitlines()[0].rstrip(" .")
        raise ModelError(
            f"{source} cannot be loaded: {first}. Take a model with safetensors that transformers knows: no pickled "
            "weights are loaded, and no code that comes with a model is run"
        ) from None


def _model_class(source: str, commit: str | None) -> Any:
    """What loads the weights of `source`: transformers' own choice, but for BERT, which has a class of this project's.

    Raises:
        ModelError: the model is an encoder, whose attention looks both ways: it would read what it is to predict.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    from attune.models.bert_decoder import decoder_class

    config = AutoConfig.from_pretrained(source, revision=commit, trust_remote_code=False)
    # Decoders have the attribute, too (GPT-NeoX), but no head of masked language modelling.
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True):
        raise ModelError(f"{source} is an encoder ({config.model_type}): set model.as_decoder = true for one of BERT's")
    return decoder_class() if config.model_type == "bert" else AutoModelForCausalLM


def positions(model: Any) -> float:
    """How many tokens the model, bare or a PeftModel, was made for; infinite where its configuration does not say."""
    config = model.get_base_model().config if hasattr(model, "get_base_model") else model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf


def require_positions(model: Any, key: str, length: int) -> None:
    """Check that the model has a position for each of the `length` tokens that the param `key` allows.

    Raises:
        ModelError: it has fewer. One with learnt positions could not even look one up that is not there.
    """
    if length > (most := positions(model)):
        raise ModelError(f"{key} = {length} exceeds the {most} positions of the base model: set it to at most {most}")


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter rather than a base model."""
    return (folder / ADAPTER_CONFIG).is_file()


def load_adapter(model: PreTrainedModel, folder: Path, trainable: bool) -> Any:
    """`model` with the adapter of `folder` on it, as a PeftModel.

    Raises:
        ModelError: there is none, it is no LoRA, or it has no safetensors: PEFT would take pickled weights instead.
    """
    from peft import PeftModel

    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} holds no adapter ({name} is missing)")
    kind = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder / ADAPTER_CONFIG}: peft_type = {kind!r}, but adapters here are LORA")
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def add_adapter(model: PreTrainedModel, lora: Lora, seed: int) -> Any:
    """`model` as a PeftModel with a fresh, seeded adapter on all linear layers; its B is 0, so it still is `model`."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(seed)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def load_variant(base: Path, folder: Path, hardware: Hardware) -> PreTrainedModel:
    """The model of a variant, ready to answer: the base model, with `folder`'s adapter on it where it is one.

    In fp32 the adapter is merged into the weights, which is faster. In bf16 and in 4 bits it is not: a low learning
    rate moves weights by less than these resolve, and merging would round what was learned away.
    """
    import torch

    model = load_base(base, hardware)
    if is_adapter(folder):
        adapted = load_adapter(model, folder, trainable=False)
        whole = model.dtype == torch.float32 and not quantization(base)
        model = adapted.merge_and_unload() if whole else adapted
    return model.eval()


def compile_layers(model: Any, hardware: Hardware) -> None:
    """Compile the decoder's layers, one graph for all of them and for all lengths, where `hardware.compile` says so.

    Args:
        model: bare or a PeftModel; it computes the same function.
        hardware: whether.
    """
    from torch import nn

    if hardware.compile:
        for layer in next(one for one in model.modules() if isinstance(one, nn.ModuleList)):
            layer.compile(dynamic=True)
