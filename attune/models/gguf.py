"""Dequantise a GGUF file (the format of llama.cpp) to a model in fp32 and its tokenizer.

The numbers are those of the package `gguf`, which transformers uses: each block of quantized weights times its scale.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import ModelError, reason
from attune.runtime.imports import import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def dequantised(path: Path) -> tuple[Any, Tokenizer]:
    """The model in the GGUF file `path` with fp32 weights, and its tokenizer.

    The same as `AutoModelForCausalLM` and `AutoTokenizer` of transformers 5.23 read, in half of the time: together they
    parse the file's 49,000 tokens three times, here it is twice, for the configuration and for the weights.

    Raises:
        ModelError: transformers knows no such architecture, or the file is damaged.
    """
    import_transformers()
    import torch
    from transformers import TOKENIZER_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.initialization import no_init_weights
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    folder, file = path.parent, path.name
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
        tokenizer_class: Any = TOKENIZER_MAPPING.get(type(config), PreTrainedTokenizerFast)
        tokenizer: Tokenizer = tokenizer_class.from_pretrained(folder, gguf_file=file)
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Without submodules, whose names transformers would look for again, in each of hundreds.
        named = SimpleNamespace(config=config, state_dict=model.state_dict, named_children=list)
        tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=named, torch_dtype=torch.float32)
        _fill(model, tensors["tensors"], path)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"{path} cannot be dequantised: {reason(error)} (install it again, or take another model)"
        ) from None
    return model, tokenizer


def _fill(model: Any, tensors: dict[str, Any], path: Path) -> None:
    """Load the weights; those that are tied have one of their names in `tensors`.

    Raises:
        ValueError: a weight is not there.
    """
    model.tie_weights()
    model.load_state_dict(tensors, strict=False)
    state = model.state_dict()
    given = {state[name].data_ptr() for name in tensors}
    if missing := [name for name, weight in state.items() if weight.data_ptr() not in given]:
        raise ValueError(f"it has no weights for {len(missing)} parameters, such as {missing[0]}")
