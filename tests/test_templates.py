"""The chat templates of widely used small models, written down in tests/templates, under small tokenizers with their
special tokens: every template is served, and SFT, DPO, log-probabilities and generation read the same tokens."""

import datetime
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby, pairwise, takewhile
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import factory
import pytest
import transformers
from conftest import SENTENCES
from helpers import ROOT
from test_chat import byte_level, sentencepiece, turns, with_bos
from tokenizers import AddedToken, decoders, pre_tokenizers

from attune.data.dialogue import Dialogue, Turn
from attune.generation.generate import generate_replies
from attune.models.chat_template import (
    TODAY,
    check_template,
    encode_completion,
    encode_examples,
    encode_prompt,
    has_system_turn,
    messages,
    render,
    stop_tokens,
)
from attune.models.loading import tokenizer_in
from attune.models.system_prompt import fit_instructed, instruct
from attune.runtime.errors import TemplateError
from attune.training.dpo.encoding import encode_pair
from attune.training.sft.fine_tune import supervised_examples

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PHI = ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")


@dataclass(frozen=True)
class Format:
    """What a template's tokenizer has, and what the template does with texts."""

    special: tuple[str, ...]
    bos: str | None
    eos: str
    end: str  # the token that ends a reply
    adds_bos: bool = False  # to a plain text
    rstrip: bool = False  # special tokens take the white space behind them
    strips: str | None = None  # white space that the template takes from a reply's ends: None, "left" or "both"
    system: bool = True


FORMATS = {
    "qwen2_5": Format(CHATML, None, "<|im_end|>", "<|im_end|>"),
    "qwen3": Format((*CHATML, "<think>", "</think>"), None, "<|im_end|>", "<|im_end|>", strips="left"),
    "llama3_1": Format(LLAMA3, LLAMA3[0], "<|eot_id|>", "<|eot_id|>", adds_bos=True, strips="both"),
    "llama3_2": Format(LLAMA3, LLAMA3[0], "<|end_of_text|>", "<|eot_id|>", adds_bos=True, strips="both"),
    "phi3": Format(PHI, "<s>", "<|endoftext|>", "<|end|>", rstrip=True),
    "phi4_mini": Format(PHI[1:], "<|endoftext|>", "<|endoftext|>", "<|end|>"),
    "gemma2": Format(GEMMA, "<bos>", "<eos>", "<end_of_turn>", adds_bos=True, strips="both", system=False),
    "gemma3": Format(GEMMA, "<bos>", "<eos>", "<end_of_turn>", adds_bos=True, strips="both"),
    "mistral0_3": Format(
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "</s>", adds_bos=True, strips="both", system=False
    ),
    "smollm2": Format(CHATML, "<|im_start|>", "<|im_end|>", "<|im_end|>"),
    "smollm3": Format((*CHATML, "<think>", "</think>"), None, "<|im_end|>", "<|im_end|>", strips="left"),
    "olmo2": Format(("<|endoftext|>", "<|pad|>"), "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
    "granite3": Format(
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), *["<|end_of_text|>"] * 3
    ),
}  # fmt: skip
TEXTS = [*SENTENCES * 3, *["user", "assistant", "model", "system", "\n\n"] * 3]


def byte_level_of(form):
    special = [AddedToken(token, rstrip=form.rstrip, normalized=False, special=True) for token in form.special]
    backend = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), special, TEXTS, 600)
    if form.adds_bos:
        with_bos(backend, form.bos)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=form.bos, eos_token=form.eos, pad_token=form.special[0]
    )


@cache
def tokenizer_of(name):
    """The tokenizer as stages load it."""
    with TemporaryDirectory() as folder:
        bare_tokenizer(name).save_pretrained(folder)
        return tokenizer_in(Path(folder))


def bare_tokenizer(name):
    form = FORMATS[name]
    if name.startswith(("gemma", "mistral")):
        tokenizer = sentencepiece("", list(form.special), form.bos, form.eos, prepend=False)
    else:
        tokenizer = byte_level_of(form)
    tokenizer.chat_template = (ROOT / f"tests/templates/{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


@pytest.fixture(scope="module", params=FORMATS)
def name(request):
    return request.param


@pytest.fixture
def form(name):
    return FORMATS[name]


@pytest.fixture
def tokenizer(name):
    return tokenizer_of(name)


PUBLISHED = {"qwen2_5": "qwen2_5", "qwen3": "qwen3", "llama3_1": "llama3_1", "llama3_2": "llama3_2", "phi3": "phi3"}
PUBLISHED |= {"gemma2": "gemma", "gemma3": "gemma3"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_templates_write_what_the_published_ones_write(name):
    """TRL comes with copies of seven of them."""
    tokenizer = bare_tokenizer(name)
    theirs = (files("trl") / f"chat_templates/{PUBLISHED[name]}.jinja").read_text(encoding="utf-8")
    for dialogue in DIALOGUES.values():
        for chat in (dialogue[:1], dialogue, *([(Turn("system", "Listen."), *dialogue)] if name != "gemma2" else [])):
            for prompt in (False, True):
                for asked in ({}, {"enable_thinking": False}):
                    given = {"tokenize": False, "add_generation_prompt": prompt} | asked
                    ours = tokenizer.apply_chat_template(messages(chat), **given)
                    assert ours == tokenizer.apply_chat_template(messages(chat), chat_template=theirs, **given)


# In a picture, brackets surround the tokens that carry the loss.
DIALOGUE = turns("I lost my dog.", "I am sorry!", "Thank you.", "How old was she?")
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PICTURES = {
    "qwen2_5": [
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nI lost my dog.<|im_end|>\n<|im_start|>assistant\n[I am sorry!<|im_end|>]\n"
        "<|im_start|>user\nThank you.<|im_end|>\n<|im_start|>assistant\n[How old was she?<|im_end|>]"
    ],
    "qwen3": [
        "<|im_start|>user\nI lost my dog.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n[I am sorry!<|im_end|>]",
        "<|im_start|>user\nI lost my dog.<|im_end|>\n<|im_start|>assistant\nI am sorry!<|im_end|>\n"
        "<|im_start|>user\nThank you.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n[How old was she?<|im_end|>]",
    ],
    "llama3_2": [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nI lost my dog.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[I am sorry!<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nThank you.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[How old was she?<|eot_id|>]"
    ],
    "phi3": [
        "<|user|>I lost my dog.<|end|><|assistant|>[I am sorry!<|end|>]"
        "<|user|>Thank you.<|end|><|assistant|>[How old was she?<|end|>]"
    ],
    "phi4_mini": [
        "<|user|>I lost my dog.<|end|><|assistant|>[I am sorry!<|end|>]"
        "<|user|>Thank you.<|end|><|assistant|>[How old was she?<|end|>]"
    ],
    "gemma2": [
        "<bos><start_of_turn>user\nI lost my dog.<end_of_turn>\n<start_of_turn>model\n[I am sorry!<end_of_turn>]\n"
        "<start_of_turn>user\nThank you.<end_of_turn>\n<start_of_turn>model\n[How old was she?<end_of_turn>]"
    ],
    "mistral0_3": ["<s>[INST] I lost my dog.[/INST][ I am sorry!</s>][INST] Thank you.[/INST][ How old was she?</s>]"],
    "smollm2": [
        f"<|im_start|>system\n{SMOLLM}<|im_end|>\n"
        "<|im_start|>user\nI lost my dog.<|im_end|>\n<|im_start|>assistant\n[I am sorry!<|im_end|>]\n"
        "<|im_start|>user\nThank you.<|im_end|>\n<|im_start|>assistant\n[How old was she?<|im_end|>]"
    ],
    "smollm3": [
        "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 26 July 2024\n"
        f"Reasoning Mode: /no_think\n\n## Custom Instructions\n\n{SMOLLM}.\n\n"
        "<|im_start|>user\nI lost my dog.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n[I am sorry!<|im_end|>]\n"
        "<|im_start|>user\nThank you.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n[How old was she?<|im_end|>]"
    ],
    "olmo2": [
        "<|endoftext|><|user|>\nI lost my dog.\n<|assistant|>\n[I am sorry!<|endoftext|>]\n"
        "<|user|>\nThank you.\n<|assistant|>\n[How old was she?<|endoftext|>]"
    ],
    "granite3": [
        "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\nToday's Date: July 26, 2024.\n"
        "You are Granite, developed by IBM. You are a helpful AI assistant.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>I lost my dog.<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>[I am sorry!<|end_of_text|>]\n"
        "<|start_of_role|>user<|end_of_role|>Thank you.<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>[How old was she?<|end_of_text|>]"
    ],
}
PICTURES |= {"llama3_1": PICTURES["llama3_2"], "gemma3": PICTURES["gemma2"]}
# Ends of texts, empty lines, and characters of several bytes.
DIALOGUES = {
    "plain": DIALOGUE,
    "spaces": turns(" I lost my dog. ", " I am sorry! ", "  Thank you.", "How old was she?  "),
    "lines": turns("I lost\n\nmy dog.\n", "\nI am\n\n\nsorry!\n", "\n\nThank you.", "How old\nwas she?\n\n"),
    "unicode": turns("J\u2019ai perdu mon chien… 😢", "我很抱歉 🤗‍🩹", "\u00a0Gracias\u2028", "¿Cuántos años?\u00a0"),
    "punctuation": turns("(lost)", "(no)!", "[INST", '"Why?" <they> asked'),
}  # fmt: skip


@pytest.fixture(params=DIALOGUES)
def dialogue(request):
    return DIALOGUES[request.param]


def written(form, text):
    """A reply as the template writes it."""
    return {None: text, "left": text.lstrip("\n"), "both": text.strip()}[form.strips]


def picture(tokenizer, encoded):
    """The tokens of a sequence, with brackets around those that carry the loss."""
    tokens = zip(tokenizer.convert_ids_to_tokens(encoded.ids), encoded.mask, strict=True)
    runs = ["".join(token for token, _ in run) for _, run in groupby(tokens, key=itemgetter(1))]
    return "".join(f"[{run}]" if (number % 2 == 0) == encoded.mask[0] else run for number, run in enumerate(runs))


def as_tokens(tokenizer, text):
    """A text in the characters of the vocabulary."""
    if isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return "".join({"\n": "Ċ", " ": "Ġ"}.get(letter, letter) for letter in text)
    return text.replace("\n", "<0x0A>").replace(" ", "▁")


def test_loss_mask(name, tokenizer):
    encoded = encode_examples(tokenizer, DIALOGUE, loss_on="assistant", max_length=1024)
    assert [picture(tokenizer, one) for one in encoded] == [as_tokens(tokenizer, one) for one in PICTURES[name]]


def sequences(tokenizer, dialogue, max_length=1024):
    """Each reply with the tokens before it and its own in SFT."""
    replies = [i for i, turn in enumerate(dialogue) if turn.role == "assistant"]
    encoded = encode_examples(tokenizer, dialogue, loss_on="assistant", max_length=max_length)
    if len(encoded) == 1:
        encoded *= len(replies)
        starts = [i for i, learned in enumerate(encoded[0].mask) if learned and not encoded[0].mask[i - 1]]
    else:
        starts = [one.mask.index(True) for one in encoded]
    assert len(encoded) == len(starts) == len(replies)
    for i, one, start in zip(replies, encoded, starts, strict=True):
        rest = one.mask[start:]
        length = rest.index(False) if False in rest else len(rest)
        yield i, one.ids[:start], one.ids[start : start + length]


def test_training_generation_and_scoring_read_the_same_tokens(name, form, tokenizer, dialogue):
    end = tokenizer.convert_tokens_to_ids(form.end)
    for i, before, reply in sequences(tokenizer, dialogue):
        context, text = dialogue[:i], dialogue[i].text
        # Generation continues from exactly the tokens that precede the reply in training.
        assert before == encode_prompt(tokenizer, context, 1024)
        # Log-probabilities and DPO, with the reply on either side.
        completion = encode_completion(tokenizer, context, text)
        assert (completion.prompt, completion.reply) == (before, reply)
        pair = encode_pair(tokenizer, context, text, "No.", 1024)
        assert (pair["prompt_ids"], pair["chosen_ids"]) == (before, reply)
        swapped = encode_pair(tokenizer, context, "No.", text, 1024)
        assert (swapped["prompt_ids"], swapped["rejected_ids"]) == (before, reply)
        # The loss covers the reply and the token that ends it, nothing else.
        assert reply[-1] == end and reply.count(end) == 1
        body = tokenizer.decode(reply[:-1])
        assert body == written(form, text) or (name == "mistral0_3" and body.strip() == text.strip())


def test_stage_sft_trains_on_them(tokenizer, form):
    dialogue = Dialogue("train/1", "c", "train", "sad", DIALOGUE)
    rows = supervised_examples(tokenizer, [dialogue], factory.sft(max_length=1024))
    learned = [token for row in rows for token in row["labels"] if token != -100]
    replies = [encode_completion(tokenizer, DIALOGUE[:i], DIALOGUE[i].text).reply for i in (1, 3)]
    assert learned == [token for reply in replies for token in reply]


def test_loss_on_the_user(tokenizer, dialogue):
    encoded = encode_examples(tokenizer, dialogue, loss_on="user", max_length=1024)
    learned = [token for one in encoded for token, learn in zip(one.ids, one.mask, strict=True) if learn]
    texts = [turn.text for turn in dialogue if turn.role == "user"]
    assert "".join(tokenizer.decode(learned).split()) == "".join("".join(texts).split())


def test_one_bos(form, tokenizer):
    ids = encode_prompt(tokenizer, DIALOGUE[:1], 1024)
    bos, first = tokenizer.bos_token_id, render(tokenizer, DIALOGUE[:1], prompt=True)
    if bos is not None and first.startswith(form.bos):
        assert ids[0] == bos != ids[1]
    else:
        # Neither does the tokenizer write one before a text.
        assert not form.adds_bos and tokenizer("a")["input_ids"][:1] != [bos]
    assert first.count(f"{form.bos}{form.bos}") == 0


class Tomorrow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(2031, 1, 2)


def test_tokens_do_not_depend_on_the_day(name, tokenizer, monkeypatch):
    from transformers.utils import chat_template_utils

    def tokens():
        encoded = encode_examples(tokenizer, DIALOGUE, loss_on="assistant", max_length=1024)
        return encoded, encode_prompt(tokenizer, DIALOGUE[:3], 1024)

    today = tokens()
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert tokens() == today
    # As published, the date would be another.
    published = bare_tokenizer(name).apply_chat_template(messages(DIALOGUE), tokenize=False)
    assert ("2031" in published) is (name in ("llama3_2", "smollm3", "granite3"))


def test_system_turn(form, tokenizer):
    """An instruction is a system turn where the template keeps it before a dialogue, else it opens the user's turn."""
    assert has_system_turn(tokenizer, tokenizer.chat_template) is form.system
    for context in (DIALOGUE[:1], DIALOGUE[:3]):
        instructed = fit_instructed(tokenizer, context, "Be a friend.", 1024)
        prompt = encode_prompt(tokenizer, instructed, 1024)
        assert tokenizer.decode(prompt).count("Be a friend.") == 1
        completion = encode_completion(tokenizer, instructed, "How old was she?")
        assert completion.prompt == prompt
        assert completion.reply == encode_completion(tokenizer, context, "How old was she?").reply
    # The conversation goes on after the same tokens.
    longer = encode_prompt(tokenizer, instruct(tokenizer, DIALOGUE[:3], "Be a friend."), 1024)
    start = encode_prompt(tokenizer, instruct(tokenizer, DIALOGUE[:1], "Be a friend."), 1024)
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(start, longer, strict=False))]
    assert "I lost my dog." in tokenizer.decode(shared)


def test_a_system_turn_of_the_corpus(tokenizer):
    """Training, DPO and generation read it alike, as a turn of its own or as the user's first words."""
    dialogue = (Turn("system", "Be a friend."), *DIALOGUE)
    for i, before, reply in sequences(tokenizer, dialogue):
        assert before == encode_prompt(tokenizer, dialogue[:i], 1024)
        assert tokenizer.decode(before).count("Be a friend.") == 1
        pair = encode_pair(tokenizer, dialogue[:i], dialogue[i].text, "No.", 1024)
        assert (pair["prompt_ids"], pair["chosen_ids"]) == (before, reply)


def test_every_window(form, tokenizer):
    """A dialogue, a prompt and a pair fit into a window, with whole replies; the prompts are the same."""
    end = tokenizer.convert_tokens_to_ids(form.end)
    fixed = len(encode_prompt(tokenizer, turns("a"), 1024))
    whole = max(len(one.ids) for one in encode_examples(tokenizer, DIALOGUE, loss_on="assistant", max_length=1024))
    shortest = 2 * max(fixed + 1, len(encode_completion(tokenizer, turns("a"), DIALOGUE[3].text).reply))
    for room in range(shortest, max(shortest + 1, whole + 1), 3):
        for one in encode_examples(tokenizer, DIALOGUE, loss_on="assistant", max_length=room):
            assert len(one.ids) <= room and one.ids[-1] == end and one.mask[-1]
        pair = encode_pair(tokenizer, DIALOGUE[:3], DIALOGUE[3].text, "No.", room)
        assert len(pair["prompt_ids"]) + len(pair["chosen_ids"]) <= room and pair["chosen_ids"][-1] == end


def test_stops(form, tokenizer):
    assert set(stop_tokens(tokenizer)) == set(tokenizer.convert_tokens_to_ids([form.end, form.eos]))


def test_is_served(tokenizer):
    check_template(tokenizer)


def test_other_special_tokens_that_end_a_text_of_the_model(name, form, tokenizer):
    """As of Llama 3, whose generation_config.json has three; the id of an ordinary token is another tokenizer's."""
    stops = stop_tokens(tokenizer)
    first, ordinary = tokenizer.convert_tokens_to_ids(form.special[0]), tokenizer("a", add_special_tokens=False)
    ids = [first, *stops, *ordinary["input_ids"], 10**6]
    assert stop_tokens(tokenizer, ids) == sorted({first, *stops})
    assert stop_tokens(tokenizer, first) == sorted({first, *stops}) and stop_tokens(tokenizer, None) == stops


def test_generation_ends_at_the_end_of_turn():
    """Where EOS is another token; and at each EOS of the model's generation_config.json."""
    import torch

    tokenizer = tokenizer_of("phi4_mini")
    end, eos, system = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>", "<|system|>"])
    words = tokenizer("I am sorry", add_special_tokens=False)["input_ids"]
    prompt = encode_prompt(tokenizer, DIALOGUE[:1], 1024)
    for stop, of_model in ((end, None), (eos, None), (system, [eos, system])):
        model = next_token_model(len(tokenizer))
        # After the prompt's last token come the words, the stop, and the words again.
        follow = dict(pairwise([prompt[-1], *words, stop, words[0]]))
        with torch.no_grad():
            model.lm_head.weight.zero_()
            for token, following in follow.items():
                model.lm_head.weight[following, token] = 1.0
        model.generation_config.eos_token_id = of_model
        assert generate_replies(model, tokenizer, [prompt], 12, factory.hardware()) == ["I am sorry"]
    model.generation_config.eos_token_id = None
    [reply] = generate_replies(model, tokenizer, [prompt], 12, factory.hardware())
    assert reply.startswith("I am sorry") and reply.count("I am") > 1


def next_token_model(size):
    """A Llama whose next token depends on the last token alone, through `lm_head`: its layers add nothing."""
    import torch

    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
    return model


BEGIN, FINISH = "{% for m in messages %}", "{% endfor %}"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
LAST = "{% if m.role == 'assistant' and loop.last %}"
# What is refused, and with which remedy; docs/extend.md has a row for each.
REFUSED = {
    "nothing ends a reply": (
        "{% for m in messages %}{{ ('Q: ' if m.role == 'user' else 'A: ') + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}",
        "writes nothing after a reply, so its end cannot be learned: add eos_token after the content of the assistant",
    ),
    "EOS ends the last reply alone": (
        "{% for m in messages %}{{ ('Q: ' if m.role == 'user' else 'A: ') + m.content }}"
        "{{ eos_token if loop.last and m.role == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}",
        "writes nothing after a reply, so its end cannot be learned: add eos_token after the content of the assistant",
    ),
    "another token ends the last reply": (
        f"{BEGIN}{LAST}{{{{ '<|im_start|>assistant\n' + m.content + '<|endoftext|>' }}}}{{% else %}}{TURN}{{% endif %}}"
        f"{FINISH}{PROMPT}",
        r"writes '<\|endoftext\|>' after a reply, but something else where .*: let chat_template end every reply alike",
    ),
    "the end of a reply is not a token": (
        f"{BEGIN}{TURN}{FINISH}{PROMPT}".replace("<|im_end|>", "<|end_of_turn|>"),
        r"ends a reply with '<\|end_of_turn\|>', but the tokenizer has no such token \(the last is '.*>'\): add it "
        "as a special token, or write eos_token instead",
    ),
    "no generation prompt": (
        f"{BEGIN}{TURN}{FINISH}",
        r"generation prompt ends in '', but a reply begins after '<\|im_start\|>assistant': let chat_template write",
    ),
    "a line break in the generation prompt alone": (
        f"{BEGIN}{TURN}{FINISH}{PROMPT}".replace("'\n' + m.content", "' ' + m.content"),
        r"generation prompt ends in '\\n', but a reply begins after ' ': let chat_template write the same text",
    ),
    "a thought before the last reply, not in the prompt": (
        f"{BEGIN}{LAST}{{{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m.content + '<|im_end|>\n' }}}}"
        f"{{% else %}}{TURN}{{% endif %}}{FINISH}{PROMPT}",
        r"a reply begins after '<think>\\n\\n</think>': let chat_template write the same text before every reply",
    ),
    "a thought begins in the prompt alone": (
        f"{BEGIN}{TURN}{FINISH}{PROMPT}".replace("assistant\n'", "assistant\n<think>\n'"),
        r"generation prompt ends in '<think>', but a reply begins after '': let chat_template write the same text",
    ),
    "content in parts": (
        f"{BEGIN}{{{{ '<|im_start|>' + m.role + '\n' + m.content[0].text + '<|im_end|>\n' }}}}{FINISH}{PROMPT}",
        r"cannot render a dialogue of texts \(.*\): correct chat_template, or take a model of text alone",
    ),
    "a turn is left out": (
        f"{BEGIN}{{% if m.role == 'assistant' or loop.last %}}{TURN}{{% endif %}}{FINISH}{PROMPT}",
        "does not write each text of the user once: let it write the content of every message",
    ),
    "a mistake in the template": (
        f"{BEGIN}{TURN}{PROMPT}",
        r"cannot render a dialogue of texts \(.*endfor.*\): correct chat_template",
    ),
    "a date of unknown form": (
        f"{{{{ strftime_now(form) }}}}{BEGIN}{TURN}{FINISH}{PROMPT}",
        r"writes the day's date: replace strftime_now\(…\) in it by a fixed text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, tmp_path):
    tokenizer = bare_tokenizer("qwen2_5")
    tokenizer.chat_template, message = REFUSED[case]
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TemplateError, match=message) as raised:
        tokenizer_in(tmp_path)
    assert "\n" not in str(raised.value)


def test_of_several_templates_the_default_is_taken(tmp_path):
    tokenizer = bare_tokenizer("qwen2_5")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ raise_exception('tools') }}"}
    tokenizer.save_pretrained(tmp_path)
    loaded = tokenizer_in(tmp_path)
    assert render(loaded, DIALOGUE) == render(tokenizer_of("qwen2_5"), DIALOGUE)


@pytest.mark.parametrize("name", ["qwen3", "llama3_2"])
def test_a_loaded_template_renders_the_same_once_saved(name, tmp_path):
    """Who serves the trained model has the prompts that it was trained on, without asking for them."""
    tokenizer = tokenizer_of(name)
    tokenizer.save_pretrained(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = saved.apply_chat_template(messages(DIALOGUE[:1]), add_generation_prompt=True)["input_ids"]
    assert ids == encode_prompt(tokenizer, DIALOGUE[:1], 1024)
    assert tokenizer_in(tmp_path).chat_template == tokenizer.chat_template
    # Qwen 3 still thinks where it is asked to.
    asked = saved.apply_chat_template(
        messages(DIALOGUE[:1]), add_generation_prompt=True, enable_thinking=True, tokenize=False
    )
    assert "<think>" not in asked


@pytest.mark.parametrize("thought", ["<think>He is sad.</think>\n\nI am sorry!", "I am </think> sorry!"])
def test_a_thought_in_a_reply(thought):
    """A template that takes thoughts out of a reply is no reason for wrong tokens."""
    with pytest.raises(TemplateError, match="take out of the reply what the template reads as its own"):
        encode_completion(tokenizer_of("qwen3"), DIALOGUE[:1], thought)


# A word of the template's row in docs/extend.md.
NAMES = {
    "qwen2_5": "Qwen 2.5", "qwen3": "Qwen 3", "llama3_1": "Llama 3.1", "llama3_2": "Llama 3.2", "phi3": "Phi 3",
    "phi4_mini": "Phi 4 mini", "gemma2": "Gemma 2", "gemma3": "Gemma 3", "mistral0_3": "Mistral 0.3",
    "smollm2": "SmolLM 2", "smollm3": "SmolLM 3", "olmo2": "OLMo 2", "granite3": "Granite 3",
}  # fmt: skip
REMEDIES = {
    "nothing ends a reply": "add `eos_token` after the content of the assistant",
    "EOS ends the last reply alone": "add `eos_token` after the content of the assistant",
    "another token ends the last reply": "end every reply alike",
    "the end of a reply is not a token": "add it as a special token, or write `eos_token`",
    "a turn is left out": "write the content of every message",
    "content in parts": "correct it, or take a model of text alone",
    "a mistake in the template": "correct it, or take a model of text alone",
    "a date of unknown form": "replace `strftime_now(…)` by a fixed text",
}
SAME_TEXT = "write the same text before every reply and, with `add_generation_prompt`, at the end of a prompt"


def test_the_page_lists_what_is_served_and_what_is_refused():
    text = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
    section = text.split("### Chat templates\n")[1].split("\n## ")[0]
    served, refused = section.split("| the template | remedy |")
    assert NAMES.keys() == FORMATS.keys()
    listed = [name.strip() for row in re.findall(r"^\| (.+?) \|", served, re.MULTILINE) for name in row.split(",")]
    assert sorted(listed[1:]) == sorted(NAMES.values())
    remedies = {row.rpartition("| ")[2] for row in re.findall(r"^\| (.+) \|$", refused, re.MULTILINE)}
    assert remedies == {REMEDIES.get(case, SAME_TEXT) for case in REFUSED}
    assert f"{TODAY.day} {TODAY:%B %Y}" in section
