"""Chat templates as token ids: tokenizers of four families in small, with these families' templates and formats."""

import json
from importlib.resources import files

import pytest
from conftest import SENTENCES
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from stages.dialogues import Turn
from stages.modeling.chat import (
    TemplateError,
    encode_completion,
    encode_dialogue,
    encode_prompt,
    fit_context,
    render,
    stop_tokens,
)
from stages.modeling.dpo import encode_pair

TEMPLATES = files("trl") / "chat_templates"
# Names that the templates write, so that the pictures show them as whole tokens.
TEXTS = [*SENTENCES * 3, *["user", "assistant", "model", "INST", "\n\n"] * 3]
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def with_bos(backend, bos):
    """As the originals do: plain text gets a BOS, a rendered template must not get a second."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )


def llama3():
    """Byte-level BPE over Llama 3's words."""
    backend = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    with_bos(backend, special[0])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[0],
        eos_token="<|eot_id|>",
        additional_special_tokens=special[2:],
    )
    tokenizer.chat_template = (TEMPLATES / "llama3.jinja").read_text(encoding="utf-8")
    return tokenizer


def sentencepiece(template, special, bos, eos, *, prepend, merges=()):
    """BPE with spaces as ▁ and bytes as a fallback; Mistral puts a ▁ before any text (`prepend`), Gemma does not."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|▁?[^▁\w]"), "isolated")
    texts = [f"{space}{text}" for text in [*TEXTS, "[ ] / < | >"] if text.strip() for space in ("", " ")]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=800, show_progress=False))
    model = json.loads(trained.to_str())["model"]

    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    tokens += ["".join(pair) for pair in merges]
    pairs = [*map(tuple, model["merges"]), *merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prepend else []), normalizers.Replace(" ", "▁")]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens(special)
    with_bos(backend, bos)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
# Writes no BOS: models of this family were trained on one that the tokenizer put there.
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)


def mistral(template=MISTRAL_TEMPLATE, merges=()):
    return sentencepiece(template, ["<unk>", "<s>", "</s>"], "<s>", "</s>", prepend=True, merges=merges)


def gemma():
    template = (TEMPLATES / "gemma.jinja").read_text(encoding="utf-8")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    return sentencepiece(template, special, "<bos>", "<eos>", prepend=False)


FAMILIES = {"llama3": llama3, "mistral": mistral, "zephyr": lambda: mistral(ZEPHYR_TEMPLATE), "gemma": gemma}
# The token that ends a reply, and the token that opens a turn: a picture has a line for each turn.
ENDS = {"llama3": "<|eot_id|>", "mistral": "</s>", "zephyr": "</s>", "gemma": "<end_of_turn>", "tiny": "</s>"}
OPENINGS = {
    "llama3": ("<|start_header_id|>",),
    "mistral": ("▁[",),
    "zephyr": ("▁<", "<"),
    "gemma": ("<start_of_turn>",),
    "tiny": ("<|user|>", "<|assistant|>"),
}


@pytest.fixture(scope="module", params=[*FAMILIES, "tiny"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family, tiny_tokenizer):
    return tiny_tokenizer if family == "tiny" else FAMILIES[family]()


def picture(tokenizer, encoded, openings):
    """Each token with ^ below it where it carries the loss."""
    lines = [("", "")]
    for token, learn in zip(tokenizer.convert_ids_to_tokens(encoded.ids), encoded.mask, strict=True):
        if token in openings:
            lines.append(("", ""))
        tokens, marks = lines[-1]
        lines[-1] = (f"{tokens}{token} ", marks + ("^" if learn else " ") * len(token) + " ")
    return "\n".join(row.rstrip() for line in lines if line[0] for row in line if row.strip()) + "\n"


def turns(*texts):
    return tuple(Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))


DIALOGUE = turns("I lost my dog.", "I am sorry!", "Thank you.", "How old was she?")
if __name__ == "__main__":
    from stages.modeling.tiny import train_tokenizer
    FAMILIES["tiny"]=lambda: train_tokenizer(SENTENCES * 3, vocab_size=400, max_positions=512)
    for on in ("assistant","user"):
        for n,f in FAMILIES.items():
            t=f()
            print(n); print(picture(t,encode_dialogue(t,DIALOGUE,loss_on=on,max_length=256),OPENINGS[n]))
