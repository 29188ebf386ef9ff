"""The card of a variant, `reports/cards/<variant>.md`, checked against the variant's files, and made that of a copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attune.config.schema import Params
from attune.report.card_facts import CARDS, METADATA, hashes
from attune.runtime.errors import UserError

LOADING = "\n## Loading\n"


def read_card(variant: str, model: Path) -> Any:
    """The card of a variant, as the hub's `ModelCard`, if it describes the files that are in `model` now.

    Raises:
        UserError: there is no card, or it is another variant's or describes other files.
    """
    from huggingface_hub import ModelCard

    path = CARDS / f"{variant}.md"
    remedy = f"run `dvc repro card@{variant}`"
    if not path.is_file():
        raise UserError(f"{path} is missing, and no model leaves the project without its card: {remedy}")
    card = ModelCard.load(path)
    facts: dict[str, Any] = card.data.get(METADATA) or {}
    if facts.get("variant") != variant:
        raise UserError(f"{path} is the card of {facts.get('variant')!r}, not of {variant!r}: {remedy}")
    if facts["files"] != (present := hashes(model)):
        different = sorted(
            name for name in facts["files"].keys() | present if facts["files"].get(name) != present.get(name)
        )
        raise UserError(
            f"{path} does not describe the files in {model}; these differ: {', '.join(different)}. {remedy}"
        )
    return card


def merged_card(card: Any, files: Mapping[str, str], dtype: str, params: Params) -> str:
    """The card of a variant as that of its merged weights: other files, and another way to load them.

    Args:
        card: of `read_card`.
        files: name to sha256.
        dtype: fp32 or bf16.
        params: of the run.
    """
    from huggingface_hub import ModelCard

    card.data.library_name = "transformers"
    card.data[METADATA]["files"] = dict(files)
    before, found, _ = str(card.text).partition(LOADING)
    assert found  # the template of stage `card` ends with this section
    return str(ModelCard(f"---\n{card.data.to_yaml()}\n---\n{before}{LOADING}{loading(dtype, params)}"))


def loading(dtype: str, params: Params) -> str:
    """The section on how to load merged weights."""
    sure = (
        "in fp32 its greedy replies are those of the variant in fp32."
        if dtype == "fp32"
        else "rounded to bf16 after merging, so that replies may differ from the variant's."
    )
    torch_dtype = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    return f"""
One model: the adapter is merged into the base model's weights in fp32; {sure} An instruction, where the variant has
one, is part of the chat template. The pipeline drops the oldest exchanges of a conversation of more than
{params.generate.max_length} tokens, prompt and reply together; the files do not.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "…"  # of these files
model = AutoModelForCausalLM.from_pretrained(folder, dtype="{torch_dtype}")
tokenizer = AutoTokenizer.from_pretrained(folder)

chat = [{{"role": "user", "content": "I lost my job today."}}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**prompt)
print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```

For llama.cpp and Ollama, which read GGUF files, llama.cpp's own converter makes one:

```sh
git clone --depth 1 https://github.com/ggml-org/llama.cpp && pip install -r llama.cpp/requirements.txt
python llama.cpp/convert_hf_to_gguf.py FOLDER --outfile model.gguf
```
"""
