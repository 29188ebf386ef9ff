"""A variant as one model in Hugging Face layout, which programs outside the project load: merged weights, tokenizer,
chat template with the variant's instruction, generation config.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.config.params import with_model
from attune.config.schema import BASE, Params, Variant
from attune.data.dialogue import Turn
from attune.runtime.errors import ModelError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

DTYPES = ("fp32", "bf16")
# Conversations whose prompts the exported tokenizer must give as the pipeline does.
PROBES = (
    (Turn("user", "I lost my job today."),),
    (Turn("user", "I lost my job."), Turn("assistant", "I am sorry. How are you?"), Turn("user", "(Not well.)")),
)


def require_mergeable(variant: str, params: Params) -> Variant:
    """The settings of a variant that can be one model.

    Raises:
        UserError: there is no such variant, or its model is missing.
        ModelError: its base model is held in 4 bits, or is BERT as a decoder.
    """
    from attune.models.base_record import quantization

    settings = with_model(params, variant)
    for folder in (Path(BASE), Path(settings.model)):
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: `dvc repro card@{variant}` makes what variant {variant} needs")
    if quantization(Path(BASE)):
        raise ModelError(
            f"{variant} was trained on a base model in 4 bits, and merged into full weights it answers differently: "
            f"publish its adapter (`python -m attune push {variant} …`)"
        )
    if params.model.as_decoder or (params.model.is_made and params.tiny.architecture == "bert"):
        raise ModelError("BERT as a decoder is a class of the project, which no other program loads")
    return settings


def write_merged(variant: str, params: Params, folder: Path, dtype: str) -> None:
    """Write a variant's merged weights, tokenizer, chat template and generation config to the new `folder`.

    Weights are merged in fp32 on the CPU, and then rounded if `dtype` is bf16: an update of a low learning rate is less
    than bf16 resolves.

    Args:
        variant: a key of variants.
        params: of the run.
        folder: to write.
        dtype: fp32 or bf16.

    Raises:
        UserError, ModelError: as `require_mergeable`, or the model cannot be loaded, or its chat template cannot carry
            the instruction.
    """
    import torch

    from attune.models.loading import load_tokenizer, load_variant
    from attune.models.system_prompt import read_instruction
    from attune.runtime.io import canonicalize_model_files

    settings = require_mergeable(variant, params)
    instruction = read_instruction(settings.instruction_file) if settings.instruction_file else None
    base = Path(BASE)
    on_cpu = params.hardware.having(device="cpu", dtype="fp32")
    model: Any = load_variant(base, Path(settings.model), on_cpu)
    tokenizer = load_tokenizer(base)
    model.generation_config = generation_config(model, tokenizer, params)
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    template = tokenizer.chat_template
    tokenizer.chat_template = exported_template(tokenizer, instruction)
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = template
    canonicalize_model_files(folder)
    check_prompts(tokenizer, folder, instruction)


def generation_config(model: Any, tokenizer: Tokenizer, params: Params) -> Any:
    """How stage `generate` decodes: lengths, sampling and stop tokens."""
    from transformers import GenerationConfig

    from attune.models.chat_template import stop_tokens

    settings = params.generate
    # Without top_k = 0 transformers samples from the 50 likeliest tokens.
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if settings.do_sample else {}
    return GenerationConfig(
        do_sample=settings.do_sample,
        max_new_tokens=settings.max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_tokens(tokenizer, model.generation_config.eos_token_id),
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )


def exported_template(tokenizer: Tokenizer, instruction: str | None) -> str:
    """The chat template with what the pipeline adds to it: BOS where only the tokenizer writes it, and the instruction.

    An instruction is a system turn, before the text of the conversation's own one; under a template without system
    turns it begins the first turn.
    """
    from attune.models.chat_template import has_system_turn, messages, render

    template = str(tokenizer.chat_template)
    user = [Turn("user", "a")]
    plain = tokenizer.apply_chat_template(messages(user), tokenize=False, add_generation_prompt=True)
    before = "" if render(tokenizer, user, prompt=True) == plain else "{{ bos_token }}"
    if instruction is None:
        return before + template
    # A Jinja literal reads the escapes of JSON.
    text = json.dumps(f"{instruction}\n\n", ensure_ascii=False)
    alone = json.dumps(instruction, ensure_ascii=False)
    first, rest = "messages[0]['content']", "messages[1:]"
    if has_system_turn(tokenizer, template):
        told = (
            "{% if messages and messages[0]['role'] == 'system' %}"
            f"{{% set messages = [{{'role': 'system', 'content': {text} + {first}}}] + {rest} %}}"
            "{% else %}"
            f"{{% set messages = [{{'role': 'system', 'content': {alone}}}] + messages %}}"
            "{% endif %}"
        )
    else:
        told = f"{{% set messages = [{{'role': messages[0]['role'], 'content': {text} + {first}}}] + {rest} %}}"
    # The empty text keeps a line break at the template's beginning.
    return told + (before or "{{ '' }}") + template


def check_prompts(tokenizer: Tokenizer, folder: Path, instruction: str | None) -> None:
    """Check that the tokenizer in `folder` gives the prompts of the pipeline to who knows nothing of it.

    Raises:
        ModelError: it gives others.
    """
    from transformers import AutoTokenizer

    from attune.models.chat_template import encode_prompt, messages
    from attune.models.system_prompt import instruct

    exported = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for turns in PROBES:
        told: Sequence[Turn] = turns if instruction is None else instruct(tokenizer, turns, instruction)
        ours = encode_prompt(tokenizer, told, sys.maxsize)
        encoded: Any = exported.apply_chat_template(messages(turns), add_generation_prompt=True, return_dict=True)
        theirs = list(encoded["input_ids"])
        if theirs != ours:
            raise ModelError(
                f"{folder}: outside the pipeline this chat template gives {tokenizer.decode(theirs)!r}, "
                f"and not {tokenizer.decode(ours)!r}, which the model was trained on: publish its adapter instead"
            )
