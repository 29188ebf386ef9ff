"""Generate replies with vLLM (Kwon et al. 2023) instead of `generate_replies`: same prompts, stop tokens and decoding.

vLLM loads the base model and the adapter itself, fills the GPU with its KV cache and forms its own batches, so that
`decoding.batch_tokens` has no effect. Prefix caching prefills the common beginning of prompts once. An adapter of a
higher rank than vLLM serves is merged into a copy of the model first. vLLM is not in requirements.lock, since it pins
its own torch (docs/scale.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from attune.compute.memory import free_memory
from attune.generation.sampling import Draws
from attune.models.base_record import quantization, weights_folder
from attune.models.chat_template import stop_tokens
from attune.models.loading import ADAPTER_CONFIG, is_adapter, load_variant
from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Generate, Hardware

# The values that `max_lora_rank` can have (MaxLoRARanks in vllm/config/lora.py).
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# The folder for merged copies. Not the temporary folder of the system: that may be in memory.
MERGED = Path(".cache")


def vllm_signature(folder: Path) -> str:
    """Name and version of the engine that answers for the variant in `folder`, for the signature of its replies."""
    import vllm

    merged = ", adapter merged" if needs_merging(folder) else ""
    return f"vllm {vllm.__version__}{merged}"


def vllm_replies(
    base: Path,
    folder: Path,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    settings: Generate,
    hardware: Hardware,
    draws: Draws | None,
) -> list[str]:
    """One reply to each prompt, as `generate_replies` returns them; the engine's memory is freed before the return.

    Args:
        base: folder of the base model.
        folder: of the variant: an adapter, or `base`.
        tokenizer: the base model's.
        prompts: N lists of token ids, each ending where a reply begins.
        settings: lengths.
        hardware: precision.
        draws: sampling settings with a seed for each prompt; None: greedy decoding. With the same seed, vLLM samples
            other replies than the built-in engine.

    Raises:
        ModelError: vLLM is not installed, or the adapter has to be merged and the base model is in 4 bits.
    """
    if find_spec("vllm") is None:
        raise ModelError(
            "generate.engine = 'vllm', but vLLM is not installed: set generate.engine = builtin, or install it as "
            "docs/scale.md says"
        )
    from vllm import LLM

    stops = stop_tokens(tokenizer, eos_ids(weights_folder(base)))
    with served(base, folder, hardware) as (weights, adapter):
        engine = LLM(**engine_arguments(base, weights, adapter, settings, hardware))
        outputs = engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            sampling_params(settings.max_new_tokens, stops, draws, len(prompts)),
            lora_request=None if adapter is None else adapter_request(adapter),
        )
    tokens = [until(output.outputs[0].token_ids, stops) for output in outputs]
    del engine
    free_memory()
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def eos_ids(folder: Path) -> list[int]:
    """`eos_token_id` of the generation_config.json in `folder`; empty where there is none."""
    path = folder / "generation_config.json"
    ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    return [ids] if isinstance(ids, int) else ids or []


@contextmanager
def served(base: Path, folder: Path, hardware: Hardware) -> Iterator[tuple[Path, Path | None]]:
    """The folders of the weights and of the adapter that the engine loads for a variant; no adapter: None.

    An adapter of a rank above all of `RANKS` is merged in fp32 on the CPU (EmPO's, of rank 1024 on 7 B: 40 GB of RAM),
    and the copy has the precision that the engine computes in. In bf16 that rounds away changes smaller than
    bf16 resolves, so that replies may differ from those of the unmerged adapter: the signature says `adapter merged`.

    Args:
        base: folder of the base model.
        folder: of the variant: an adapter, or `base`.
        hardware: precision.

    Raises:
        ModelError: such an adapter's base model is in 4 bits.
    """
    if not needs_merging(folder):
        yield weights_folder(base), folder if is_adapter(folder) else None
        return
    if quantization(base):
        raise ModelError(
            f"{folder} has a rank above {RANKS[-1]}, which vLLM serves only merged, but its base model is in 4 bits, "
            "into which nothing is merged: set generate.engine = builtin"
        )
    model: Any = load_variant(base, folder, hardware.having(device="cpu", dtype="fp32"))
    MERGED.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="vllm-", dir=MERGED) as merged:
        (model.bfloat16() if hardware.precision == "bf16" else model).save_pretrained(merged)
        del model
        yield Path(merged), None


def engine_arguments(
    base: Path, weights: Path, adapter: Path | None, settings: Generate, hardware: Hardware
) -> dict[str, Any]:
    """Keyword arguments of vLLM's `LLM`.

    Args:
        base: folder of the base model.
        weights, adapter: of `served`.
        settings: lengths.
        hardware: precision.
    """
    lora = {} if adapter is None else {"enable_lora": True, "max_lora_rank": served_rank(adapter)}
    # The bitsandbytes loader prefers safetensors, too; `load_base` has refused a model without them in training.
    loader = {"quantization": "bitsandbytes", "load_format": "bitsandbytes"} if quantization(base) else {}
    return {
        "model": str(weights),
        "trust_remote_code": False,
        "load_format": "safetensors",
        # Prompts are token ids, and replies are decoded here in the same way as those of the built-in engine.
        "skip_tokenizer_init": True,
        # Ignore the model's generation_config.json, which would change the sampling.
        "generation_config": "vllm",
        "dtype": "bfloat16" if hardware.precision == "bf16" else "float32",
        "max_model_len": settings.max_length,
        "enable_prefix_caching": True,
        **lora,
        **loader,
    }


def served_rank(adapter: Path) -> int | None:
    """The smallest `max_lora_rank` that serves the adapter; None if its rank is higher than all."""
    rank = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"]
    return next((served for served in RANKS if served >= rank), None)


def needs_merging(folder: Path) -> bool:
    """Whether a variant's folder holds an adapter of a higher rank than vLLM serves."""
    return is_adapter(folder) and served_rank(folder) is None


def adapter_request(adapter: Path) -> Any:
    """vLLM's request for an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, 1, str(adapter.resolve()))


def sampling_params(max_new_tokens: int, stops: Sequence[int], draws: Draws | None, prompts: int) -> list[Any]:
    """vLLM's `SamplingParams` of each prompt."""
    from vllm import SamplingParams

    common = {"max_tokens": max_new_tokens, "stop_token_ids": list(stops), "detokenize": False}
    if draws is None:
        return [SamplingParams(temperature=0.0, **common) for _ in range(prompts)]
    distribution = {"temperature": draws.temperature, "top_p": draws.top_p}
    return [SamplingParams(seed=seed, **distribution, **common) for seed in draws.seeds]


def until(tokens: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The tokens before the first stop token, which vLLM returns, too."""
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:end])
