"""A conversation in the terminal: the answers, the context that is dropped, and the end."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import torch
import transformers

from attune.data.dialogue import Turn
from attune.generation.generate import generate_replies
from attune.models.chat_template import encode_prompt
from attune.models.tiny import train_tokenizer
from attune.runtime.errors import UserError
from attune.tools.chat import Conversation, answers, begin

ROOT = Path(__file__).parents[1]
HARDWARE = factory.hardware()
LINES = ["i lost my keys today", "and then my dog ran away", "why does it always rain", "nobody listens to me"]


@pytest.fixture(scope="module")
def params():
    return factory.params(generate=factory.generate(max_length=64, max_new_tokens=8))


@pytest.fixture(scope="module")
def conversation(params):
    tokenizer = train_tokenizer(LINES * 3, 320, 128)
    torch.manual_seed(3)
    # A random model whose head is the embedding repeats what it read last, a special token.
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    return lambda: Conversation(model, tokenizer, params, None)


def test_an_answer_is_the_models_reply_to_all_turns_before_it(conversation, params):
    talk = conversation()
    first, _ = talk.say(LINES[0])
    second, left_out = talk.say(LINES[1])
    turns = [Turn("user", LINES[0]), Turn("assistant", first), Turn("user", LINES[1])]
    prompt = encode_prompt(talk.tokenizer, turns, 56)
    assert [second] == generate_replies(talk.model, talk.tokenizer, [prompt], 8, params.hardware)
    assert left_out == 0 and talk.turns == [*turns, Turn("assistant", second)]


def test_what_no_longer_fits_is_left_out_with_a_word(conversation):
    talk = conversation()
    printed = list(answers(talk, LINES * 2))
    assert len(talk.turns) == 4 * len(LINES)
    notes = [text for text in printed if text.startswith("(the oldest")]
    assert notes and notes[-1] != notes[0]


def test_commands_and_empty_lines_are_no_turns(conversation):
    talk = conversation()
    printed = list(answers(talk, [LINES[0], "", "  ", "/new", LINES[1], "/quit", LINES[2]]))
    assert printed[1] == "(a new conversation)" and len(printed) == 3
    assert [turn.text for turn in talk.turns if turn.role == "user"] == [LINES[1]]


def test_an_instruction_is_read_and_is_no_turn(conversation):
    plain, told = conversation(), replace(conversation(), instruction="nobody listens to me")
    assert plain.say(LINES[0])[0] != told.say(LINES[0])[0]
    assert [turn.role for turn in told.turns] == ["user", "assistant"]


def test_what_is_not_there_is_named(params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'dbo' is none of variants: base, sft, sft-dpo"):
        begin("dbo", params)
    with pytest.raises(UserError, match=r"models/base is missing: `dvc repro generate@sft-dpo` trains"):
        begin("sft-dpo", params)


def test_the_command_says_what_answers_and_ends_with_its_input():
    done = subprocess.run(
        [sys.executable, "-m", "attune", "chat", "--variant", "nobody"], cwd=ROOT, input="hello\n", text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "none of variants" in done.stderr and "Traceback" not in done.stderr
