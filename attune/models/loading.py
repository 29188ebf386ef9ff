"""Load the base model, its tokenizer, and LoRA adapters on it. Weights are safetensors; no remote code is run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.compute.process import rank_device, set_up_process
from attune.config.sections.fields import ALL_LINEAR
from attune.models.base_record import origin, quantization, weights_folder
from attune.models.chat_template import check_template, settle_template
from attune.models.quantization import disable_cpu_repacking, nf4_arguments
from attune.models.weights import file_errors
from attune.runtime.errors import ModelError
from attune.runtime.imports import import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Hardware, Lora

# The device that adapters are read onto, before their weights are copied into the model's.
READ_ON = "cpu"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load_tokenizer(base: Path) -> Tokenizer:
    """The base model's tokenizer; where it has no pad token, EOS is the pad token.

    Args:
        base: folder of the base model's record.

    Raises:
        ModelError: as `tokenizer_in`.
    """
    return tokenizer_in(weights_folder(base))


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of the model in `folder`.

    Raises:
        ModelError: its files cannot be read, or it has no chat template or no EOS token.
        TemplateError: the chat template hides where a reply begins or ends.
    """
    import_transformers()
    from transformers import AutoTokenizer

    with file_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.chat_template is not None:
            # Of several templates (for tools and so on) the default one.
            tokenizer.chat_template = settle_template(tokenizer.get_chat_template())
    if tokenizer.chat_template is None or tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer in {folder} has no chat template or no EOS token: take an instruction-tuned model, or "
            "add them (tokenizer.chat_template, tokenizer.eos_token) and save it again"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_template(tokenizer)
    return tokenizer


def load_base(base: Path, hardware: Hardware) -> PreTrainedModel:
    """The base model on `compute.device`, in 4 bits where its record has a quantization.

    Weights are fp32 on a CPU, where bf16 comes from autocast, and `compute.dtype` on a GPU.

    Raises:
        ModelError: `compute.device` is cuda and no GPU is visible, the model is an encoder, has no safetensors or
            needs remote code, or bitsandbytes is missing for a quantized model.
    """
    set_up_process(hardware)
    import torch

    folder = weights_folder(base)
    bf16_weights = hardware.device == "cuda" and hardware.precision == "bf16"
    quantized = nf4_arguments(hardware) if quantization(base) else {}
    # With a device map weights go from the file to the device: no rank holds them all in the CPU's memory.
    device_map = {"device_map": {"": rank_device(hardware)}} if quantized or hardware.device == "cuda" else {}
    with file_errors(folder):
        loaded: PreTrainedModel = model_class(folder).from_pretrained(
            folder,
            dtype=torch.bfloat16 if bf16_weights else torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            **quantized,
            **device_map,
        )
    disable_cpu_repacking(loaded)
    name, commit = origin(base)
    if commit is not None:
        # PEFT writes both into an adapter's configuration, where the folder in this machine's cache would help nobody.
        loaded.name_or_path, loaded.config._commit_hash = name, commit
    return loaded


def model_class(folder: Path) -> Any:
    """The class that loads the weights in `folder`: `AutoModelForCausalLM`, or `decoder_class` for BERT.

    Raises:
        ModelError: the model is an encoder, whose attention is bidirectional: it would see the tokens it predicts. Or
            transformers does not know its architecture.
    """
    import_transformers()
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    from attune.models.bert_decoder import decoder_class

    with file_errors(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = config.model_type
    # `is_decoder` alone does not tell: decoders such as GPT-NeoX have it, as False, but they have no head for masked
    # language modelling.
    if (kind in MASKED and not getattr(config, "is_decoder", True)) or kind not in CAUSAL:
        raise ModelError(
            f"the model in {folder} is no language model but an encoder ({kind}): take a decoder, or set "
            "model.as_decoder = true for BERT"
        )
    return decoder_class() if kind == "bert" else AutoModelForCausalLM


def positions(model: Any) -> float:
    """The maximum number of positions of a model or PeftModel; infinite where its configuration has no limit."""
    config = model.get_base_model().config if hasattr(model, "get_base_model") else model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf


def require_positions(model: Any, key: str, length: int) -> None:
    """Check that the model has `length` positions, the value of the param `key`.

    Raises:
        ModelError: it has fewer. A model with learned positions would fail in the lookup of the missing embeddings.
    """
    if length > (limit := positions(model)):
        raise ModelError(f"{key} = {length} exceeds the {limit} positions of the base model: set it to at most {limit}")


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter rather than a base model."""
    return (folder / ADAPTER_CONFIG).is_file()


def load_adapter(model: PreTrainedModel, folder: Path, trainable: bool) -> Any:
    """`model` with the adapter in `folder`, as a PeftModel; modules that were trained whole are in fp32.

    Raises:
        ModelError: there is no adapter, it is not LoRA, or it has no safetensors (PEFT would load pickled weights).
    """
    from peft import PeftModel

    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} holds no adapter ({name} is missing)")
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if (kind := config.get("peft_type")) != "LORA":
        raise ModelError(f"{folder / ADAPTER_CONFIG}: peft_type = {kind!r}, but adapters here are LORA")
    _to_fp32(model, config.get("modules_to_save") or ())
    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, torch_device=READ_ON)
    return read_adapters_on_cpu(adapted)


def add_adapter(model: PreTrainedModel, lora: Lora, seed: int) -> Any:
    """`model` as a PeftModel with a new, seeded LoRA adapter on `lora.target_modules`.

    An adapted layer computes W x + alpha / r B A x. B starts at 0, so that the result still is the function `model`.

    Raises:
        ModelError: the model has no module of a name in `lora.target_modules` or `lora.modules_to_save`.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    _require_modules(model, lora)
    _to_fp32(model, lora.modules_to_save)
    set_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=lora.modules_to_save or None,
        task_type="CAUSAL_LM",
    )
    return read_adapters_on_cpu(get_peft_model(model, config, revision=getattr(model.config, "_commit_hash", None)))


def read_adapters_on_cpu(model: Any) -> Any:
    """`model`, a PeftModel, whose `load_adapter`, which Trainer calls on resuming, reads files into the CPU's memory.

    Without a device PEFT 0.21 reads them onto "cuda", which safetensors takes for the first GPU, on every rank.
    """
    model.load_adapter = partial(model.load_adapter, torch_device=READ_ON)
    return model


def _to_fp32(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Cast modules that are trained whole, which PEFT then copies: bf16 resolves no step of a low learning rate."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in names:
            module.float()


def _require_modules(model: PreTrainedModel, lora: Lora) -> None:
    """PEFT takes a name that stands for no module, if another one in the list does."""
    known = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    adapted = [] if lora.target_modules == ALL_LINEAR else lora.target_modules
    for key, names in (("target_modules", adapted), ("modules_to_save", lora.modules_to_save)):
        if unknown := [name for name in names if name.rpartition(".")[2] not in known]:
            raise ModelError(
                f"lora.{key} names {unknown[0]}, which the base model does not have: its modules are "
                f"{', '.join(sorted(name for name in known if not name.isdecimal() and name))}"
            )


def load_variant(base: Path, folder: Path, hardware: Hardware, merge: bool = True) -> PreTrainedModel:
    """The model of a variant, in eval mode: the base model, with the adapter in `folder` if there is one.

    Args:
        base: folder of the base model.
        folder: of the variant: an adapter, or `base`.
        hardware: device and precision.
        merge: merge an adapter into fp32 weights, which makes inference faster. It is never merged into weights in
            bf16 or 4 bits: a low learning rate changes a weight by less than these resolve, so that merging would
            round the training away. Beside such weights it is stored in bf16.
    """
    model = load_base(base, hardware)
    if is_adapter(folder):
        import torch

        # Asked before modules that were trained whole are put in, which are in fp32.
        merge = merge and model.dtype == torch.float32 and not quantization(base)
        bf16 = model.dtype == torch.bfloat16
        adapted = load_adapter(model, folder, trainable=False)
        if bf16 and not merge:
            store_adapter_in_bf16(adapted)
        model = adapted.merge_and_unload() if merge else adapted
    return model.eval()


def store_adapter_in_bf16(model: Any) -> None:
    """Store the adapter of a PeftModel that is no longer trained in bf16, as autocast would cast it at every use.

    Autocast caches the casts of weights that are trained, and no others.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A.to(torch.bfloat16)
            layer.lora_B.to(torch.bfloat16)


def variant_signature(base: Path, folder: Path) -> dict[str, str]:
    """The signature of a variant loaded with `merge=False`: base model, hub commit, adapter and quantization."""
    source, commit = origin(base)
    adapter = f"{folder}, not merged" if is_adapter(folder) else "none"
    quantized = {"quantization": name} if (name := quantization(base)) else {}
    return {"model": source, "commit": commit or "none", "adapter": adapter} | quantized


def compile_layers(model: Any, hardware: Hardware) -> None:
    """With `training.compile`, compile the decoder layers of a model or PeftModel; it computes the same function.

    All layers have the same code and `dynamic=True` covers all lengths, so that one graph serves them all.
    """
    from torch import nn

    if hardware.compile:
        for layer in next(module for module in model.modules() if isinstance(module, nn.ModuleList)):
            layer.compile(dynamic=True)
