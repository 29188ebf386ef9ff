"""What this project calls of vLLM, by the names and arguments of its API, answering with transformers one by one.

The arguments are those of vLLM 0.11 and later: one that is not among them is a TypeError, as there. It replaces an
engine that wants a GPU, so that the calls are checked; of vLLM itself it shows nothing.
"""

import sys
import types
from dataclasses import dataclass, field
from typing import ClassVar

import torch

__version__ = "0.0.stand-in"


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass(frozen=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    detokenize: bool = True


@dataclass
class CompletionOutput:
    token_ids: list[int]


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    made: ClassVar[list[dict]] = []  # the arguments of each

    def __init__(
        self, model, *, revision=None, trust_remote_code=False, load_format="auto", skip_tokenizer_init=False,
        generation_config="auto", dtype="auto", max_model_len=None, enable_prefix_caching=None, enable_lora=False,
        max_lora_rank=16, quantization=None,
    ):  # fmt: skip
        from transformers import AutoModelForCausalLM

        assert dtype == "float32" and load_format == "safetensors" and quantization is None
        self.length, self.lora, self.rank = max_model_len, enable_lora, max_lora_rank
        self.model = AutoModelForCausalLM.from_pretrained(model, revision=revision, use_safetensors=True).eval()
        LLM.made.append({"enable_prefix_caching": enable_prefix_caching, "generation_config": generation_config})

    def generate(self, prompts, sampling_params, *, use_tqdm=True, lora_request=None):
        from peft import PeftModel

        assert lora_request is None or (self.lora and lora_request.lora_int_id > 0)
        model = PeftModel.from_pretrained(self.model, lora_request.lora_path) if lora_request else self.model
        if lora_request:
            assert model.peft_config["default"].r <= self.rank
        return [self._answer(model, one["prompt_token_ids"], how)
                for one, how in zip(prompts, sampling_params, strict=True)]  # fmt: skip

    def _answer(self, model, prompt, how):
        """Token by token; the stop that ends a reply is among its tokens, as it is vLLM's."""
        found, draws = [], torch.Generator().manual_seed(how.seed or 0)
        while len(found) < how.max_tokens and len(prompt) + len(found) < self.length:
            with torch.no_grad():
                scores = model(input_ids=torch.tensor([[*prompt, *found]])).logits[0, -1]
            if how.temperature == 0:
                found.append(int(scores.argmax()))
            else:
                chances = (scores / how.temperature).softmax(-1)
                found.append(int(torch.multinomial(chances, 1, generator=draws)))
            if found[-1] in how.stop_token_ids:
                break
        return RequestOutput(prompt, [CompletionOutput(found)])


def install(monkeypatch):
    """Have `import vllm` find this."""
    package, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    package.__dict__.update(LLM=LLM, SamplingParams=SamplingParams, __version__=__version__, lora=lora)
    request.LoRARequest = LoRARequest
    package.__spec__ = types.SimpleNamespace(name="vllm")
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
