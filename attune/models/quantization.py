"""QLoRA (Dettmers et al. 2023): the base model's linear layers in 4 bits, through bitsandbytes.

Weights are 4-bit NormalFloats (NF4) in blocks of 64 with a scale per block. The scales are quantized again (double
quantization, section 3). Each product dequantises the weights of its layer. Adapters, embeddings, norms and the head
are not quantized.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from attune.config.schema import Hardware

PACKAGE = "bitsandbytes"
# The version that this was tried with, on a CPU.
INSTALL = f"pip install {PACKAGE}==0.50.2"
# Per weight: 4 bits, an 8-bit scale per 64 weights, and an fp32 scale per 256 of these scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def require_bitsandbytes(setting: str) -> None:
    """Check that bitsandbytes is installed.

    Args:
        setting: the key and value that need it, for the error message.

    Raises:
        ModelError: it is not.
    """
    if find_spec(PACKAGE) is None:
        raise ModelError(f"{setting} needs {PACKAGE}, which is not installed: `{INSTALL}` (docs/scale.md)")


def nf4_arguments(hardware: Hardware) -> dict[str, Any]:
    """Arguments of `from_pretrained` for NF4 weights; products are computed in `compute.dtype`.

    Raises:
        ModelError: bitsandbytes is missing.
    """
    import torch
    from transformers import BitsAndBytesConfig

    require_bitsandbytes("model.quantization = 'nf4'")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if hardware.precision == "bf16" else torch.float32,
    )
    return {"quantization_config": config}


def disable_cpu_repacking(model: Any) -> None:
    """Keep 4-bit layers in the format that has a gradient. No effect on a model without such layers.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weights of a layer in its first forward pass without
    gradients, for a kernel without a backward pass. Training after that would silently lose the gradients of all
    layers below.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def optimizer_name(hardware: Hardware) -> str:
    """The optimizer for `TrainingArguments.optim`.

    Raises:
        ModelError: the optimizer is from bitsandbytes, which is missing, or `compute.device` is cpu.
    """
    name = hardware.optimizer
    if name.startswith("adamw_torch"):
        return name
    if hardware.device == "cpu":
        raise ModelError(
            f"training.optimizer = {name!r} is for a GPU: set training.optimizer = adamw_torch_fused with hardware=cpu"
        )
    require_bitsandbytes(f"training.optimizer = {name!r}")
    return name


def keep_adapter_fp32(policy: Any) -> None:
    """Make TRL leave the adapter of a quantized model in fp32.

    TRL 1.16's DPO trainer casts the adapter of a 4-bit model to bf16 (`_is_quantized_model` in dpo_trainer.py). A step
    of 1e-5 is less than bf16 resolves: the policy would not move, and would start with other weights than its
    reference.
    """
    if getattr(policy, "is_loaded_in_4bit", False):
        policy.is_loaded_in_4bit = False
