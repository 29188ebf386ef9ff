"""An instruction before a conversation, under the templates of five families."""

import jinja2
import pytest
from helpers import ROOT, prepare
from test_chat import FAMILIES, turns

from attune.data.dialogue import Dialogue, Turn
from attune.data.examples import examples
from attune.models.chat_template import encode_completion, encode_dialogue, encode_prompt, fit_context, render
from attune.models.system_prompt import fit_instructed, has_system_turn, read_instruction, tell_joined
from attune.runtime.errors import TemplateError, UserError

INSTRUCTION = "You are a friend. How old was she?"
CONTEXT = turns("I lost my dog.", "I am sorry!", "She was my best friend.")
SYSTEM = {"llama3": True, "zephyr": True, "mistral": False, "gemma": False, "tiny": False}
OPENINGS = {
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>user",
    "zephyr": "<s><|system|>\n{}</s>\n<|user|>",
    "mistral": "<s>[INST] {}\n\nI lost my dog. [/INST]",
    "gemma": "<bos><start_of_turn>user\n{}\n\nI lost my dog.<end_of_turn>",
    "tiny": "<s><|user|>{}\n\nI lost my dog.<|assistant|>",
}


@pytest.fixture(scope="module", params=SYSTEM)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family, tiny_tokenizer):
    return tiny_tokenizer if family == "tiny" else FAMILIES[family]()


def read(tokenizer, ids):
    return tokenizer.decode(ids).replace("<s> ", "<s>").replace("</s> ", "</s>")


def test_prompt_begins_with_the_instruction(family, tokenizer):
    assert has_system_turn(tokenizer, tokenizer.chat_template) is SYSTEM[family]
    prompt = encode_prompt(tokenizer, fit_instructed(tokenizer, CONTEXT, INSTRUCTION, 512), 512)
    assert read(tokenizer, prompt).startswith(OPENINGS[family].format(INSTRUCTION))
    plain = encode_prompt(tokenizer, CONTEXT, 512)
    # The conversation and the generation prompt follow it unchanged.
    assert prompt[-8:] == plain[-8:] and len(prompt) > len(plain)


@pytest.mark.parametrize("family", ["mistral", "gemma"])
def test_templates_without_system_turn(family):
    """These templates refuse turns that do not alternate, so that a rendered context is evidence."""
    tokenizer = FAMILIES[family]()
    refused = [
        [Turn("user", "Hi."), Turn("user", "Hello?")],
        [Turn("user", "Hi."), Turn("assistant", "Hello."), Turn("assistant", "Yes?")],
    ]
    for broken in refused:
        with pytest.raises(jinja2.TemplateError):
            render(tokenizer, broken)
    dialogues, _ = prepare(ROOT / "data/sample/esconv_sample", "esconv")
    some = examples(dialogues[:12], "every", 7)
    assert max(len(example.context) for example in some) == 7 and min(len(example.context) for example in some) == 1
    for example in some[::5]:
        for room in (4096, 160):
            plain = fit_context(tokenizer, example.context, room)
            instructed = fit_instructed(tokenizer, example.context, INSTRUCTION, room)
            for fitted in (plain, instructed):
                assert [turn.role for turn in fitted] == [("user", "assistant")[i % 2] for i in range(len(fitted))]
                assert len(fitted) % 2 and len(encode_prompt(tokenizer, fitted, room)) <= room
                assert encode_completion(tokenizer, fitted, example.target).reply
            kept = example.context[-len(instructed) :]
            assert instructed[0].text.startswith(f"{INSTRUCTION}\n\n") and instructed[1:] == kept[1:]
            assert kept[0].text.endswith(instructed[0].text.removeprefix(f"{INSTRUCTION}\n\n"))
    for dialogue in dialogues[:3]:
        encoded = encode_dialogue(tokenizer, dialogue.turns, loss_on="assistant", max_length=256)
        assert any(encoded.mask) and len(encoded.ids) <= 256


def test_completion_has_the_same_prompt(tokenizer):
    context = fit_instructed(tokenizer, CONTEXT, INSTRUCTION, 512)
    assert encode_completion(tokenizer, context, "How old was she?").prompt == encode_prompt(tokenizer, context, 512)


def test_no_instruction(tokenizer):
    assert fit_instructed(tokenizer, CONTEXT, None, 512) == CONTEXT


def test_only_the_conversation_is_truncated(tokenizer):
    """At every length with room for a word, the instruction is complete and the prompt fits."""
    last = len(encode_prompt(tokenizer, fit_instructed(tokenizer, CONTEXT, INSTRUCTION, 512), 512))
    shortest = len(encode_prompt(tokenizer, fit_instructed(tokenizer, turns("friend."), INSTRUCTION, 512), 512))
    seen = set()
    for room in range(shortest, last + 1):
        fitted = fit_instructed(tokenizer, CONTEXT, INSTRUCTION, room)
        prompt = encode_prompt(tokenizer, fitted, room)
        assert len(prompt) <= room and INSTRUCTION in tokenizer.decode(prompt)
        seen.add(sum(turn.role != "system" for turn in fitted))
    assert seen == {1, 3}


def test_instruction_leaves_no_room(tokenizer):
    room = len(encode_prompt(tokenizer, turns("a"), 512)) + 2
    with pytest.raises(TemplateError, match=rf"^the instruction leaves \d+ of {room} tokens for the conversation: "):
        fit_instructed(tokenizer, CONTEXT, INSTRUCTION, room)


def test_template_that_drops_the_system_turn(tiny_tokenizer):
    kept, loop = tiny_tokenizer.chat_template, "{% for message in messages %}"
    assert loop in kept
    tiny_tokenizer.chat_template = kept.replace(loop, loop[:-3] + " if message['role'] != 'system' %}")
    try:
        (only,) = fit_instructed(tiny_tokenizer, [Turn("user", "I lost my dog.")], INSTRUCTION, 512)
    finally:
        tiny_tokenizer.chat_template = kept
    assert only == Turn("user", f"{INSTRUCTION}\n\nI lost my dog.")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is missing: a variant names it"), (b" \n", "is empty"), (b"\xff", ":1: not UTF-8")]
)
def test_unreadable_instruction(tmp_path, content, message):
    path = tmp_path / "instruction.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"instruction\.txt.*{message}"):
        read_instruction(path)
    path.write_text(" Listen. \n", encoding="utf-8")
    assert read_instruction(path) == "Listen."


def test_a_system_turn_of_the_corpus_survives_truncation(family, tokenizer):
    """It is kept where the template has one, else it begins the first user turn; exchanges go before it does."""
    system, long = Turn("system", "Be kind."), (*(*CONTEXT, Turn("assistant", "I see.")) * 4, *CONTEXT)
    plain, room = fit_context(tokenizer, long, 512), 96
    assert fit_context(tokenizer, (system, *long), 512) == (system, *plain)
    fitted = fit_context(tokenizer, (system, *long), room)
    assert fitted[0] == system and fitted[1:] == long[-len(fitted[1:]) :] and 1 < len(fitted) < len(long)
    ids = encode_prompt(tokenizer, (system, *long), room)
    assert len(ids) <= room and read(tokenizer, ids).count("Be kind.") == 1
    assert read(tokenizer, ids).startswith(OPENINGS[family].partition("I lost")[0].format("Be kind."))
    # An instruction stands before it.
    both = read(tokenizer, encode_prompt(tokenizer, fit_instructed(tokenizer, (system, *CONTEXT), "Listen.", 512), 512))
    assert both.index("Listen.") < both.index("Be kind.") and both.startswith(
        OPENINGS[family].format("Listen.\n\nBe kind.")
    )


def test_a_system_turn_carries_no_loss(family, tokenizer):
    turns = (Turn("system", "Be kind."), Turn("user", "I lost my dog."), Turn("assistant", "I am sorry!"))
    for role, words in (("assistant", "I am sorry!"), ("user", "I lost my dog.")):
        encoded = encode_dialogue(tokenizer, turns, loss_on=role, max_length=256)
        learned = tokenizer.decode([token for token, on in zip(encoded.ids, encoded.mask, strict=True) if on])
        assert words in learned and "kind" not in learned
    short = encode_dialogue(tokenizer, (turns[0], *turns[1:] * 9), loss_on="assistant", max_length=64)
    assert len(short.ids) <= 64 and "Be kind." in read(tokenizer, short.ids)


def test_system_turns_that_a_template_joins_are_counted_aloud(family, tokenizer, capsys):
    dialogues = [Dialogue(str(n), "a", "train", "", (Turn("system", "Be kind."), *CONTEXT)[n % 2 :]) for n in range(5)]
    tell_joined(tokenizer, dialogues)
    said = capsys.readouterr().out
    assert ("those of 3 dialogues begin their first user turns" in said) is not SYSTEM[family]
