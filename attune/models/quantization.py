"""The base model's linear layers in 4 bits, through bitsandbytes: QLoRA (Dettmers et al. 2023).

Weights are held as 4-bit NormalFloats in blocks of 64 with a scale each, which is itself quantized (section 3), and
are made whole again, a layer at a time, for each product. Adapters, embeddings, norms and the head are not quantized.
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
# A weight, a share of its block's 8-bit scale, and one of the fp32 scale of 256 of these.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def require_bitsandbytes(what: str) -> None:
    """Check that bitsandbytes is there for `what`, a key and its value.

    Raises:
        ModelError: it is not.
    """
    if find_spec(PACKAGE) is None:
        raise ModelError(f"{what} needs {PACKAGE}, which is not installed: `{INSTALL}` (docs/scale.md)")


def in_4_bits(hardware: Hardware) -> dict[str, Any]:
    """Arguments of `from_pretrained` for NF4; products are in `hardware.dtype`.

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
        bnb_4bit_compute_dtype=torch.bfloat16 if hardware.dtype == "bf16" else torch.float32,
    )
    return {"quantization_config": config, "device_map": {"": hardware.device}}


def keep_differentiable(model: Any) -> None:
    """Have the layers of a model in 4 bits keep the form that has a gradient.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 packs a layer's weights anew in its first forward pass without
    gradients, for a kernel that has none: training behind it would lose, in silence, the gradient of all layers below.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def optimizer(hardware: Hardware) -> str:
    """The name of transformers' optimizer.

    Raises:
        ModelError: it is of bitsandbytes, and that is missing, or `hardware.device` is cpu.
    """
    name = hardware.optimizer
    if name.startswith("adamw_torch"):
        return name
    if hardware.device == "cpu":
        raise ModelError(
            f"hardware.optimizer = {name!r} is for a GPU: set hardware.optimizer = adamw_torch_fused with hardware=cpu"
        )
    require_bitsandbytes(f"hardware.optimizer = {name!r}")
    return name


def keep_adapter_whole(policy: Any) -> None:
    """Have TRL leave the adapter of a quantized model in fp32.

    TRL 1.16's DPO trainer rounds the adapter of a model in 4 bits to bf16 (`_is_quantized_model` in dpo_trainer.py). A
    step of 1e-5 is less than bf16 resolves: the policy would stand still, and begin off its reference.
    """
    if getattr(policy, "is_loaded_in_4bit", False):
        policy.is_loaded_in_4bit = False
