"""Dequantise a GGUF file (the format of llama.cpp) to a model in fp32 and its tokenizer.

The numbers are those of the package `gguf`, which transformers uses: each block of quantized weights times its scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import ModelError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def dequantised(path: Path) -> tuple[Any, Tokenizer]:
    """The model in the GGUF file `path` with fp32 weights, and its tokenizer.

    Raises:
        ModelError: transformers knows no such architecture, or the file is damaged.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{path} cannot be dequantised: {reason(error)} (install it again, or take another model)"
        ) from None
    config = loaded.config
    # transformers 5.23 keeps the quantization of the file in the configuration, and then refuses to save the model.
    del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    return model, tokenizer
