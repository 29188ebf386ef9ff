"""A conversation in the terminal: the answers, the context that is dropped, and the end."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import small
import torch
import transformers

from attune.data.dialogue import Turn
from attune.generation.generate import generate_replies
from attune.models.chat_template import encode_prompt
from attune.models.tiny import train_tokenizer
from attune.runtime.errors import Stopped, UserError, visible
from attune.tools.chat import NOTICE, Conversation, answers, require, show

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


def said(talk, text):
    """The whole reply, and the number of turns that were left out."""
    reply, left_out = talk.say(text)
    return "".join(reply), left_out


def spoken(talk, lines):
    """All that is printed after the lines."""
    return [answer if isinstance(answer, str) else "".join(answer) for answer in answers(talk, lines)]


def test_an_answer_is_the_models_reply_to_all_turns_before_it(conversation, params):
    talk = conversation()
    first, _ = said(talk, LINES[0])
    second, left_out = said(talk, LINES[1])
    turns = [Turn("user", LINES[0]), Turn("assistant", first), Turn("user", LINES[1])]
    prompt = encode_prompt(talk.tokenizer, turns, 56)
    assert [second] == generate_replies(talk.model, talk.tokenizer, [prompt], 8, params.hardware)
    assert left_out == 0 and talk.turns == [*turns, Turn("assistant", second)]


def test_what_no_longer_fits_is_left_out_with_a_word(conversation):
    talk = conversation()
    printed = spoken(talk, LINES * 2)
    assert len(talk.turns) == 4 * len(LINES)
    notes = [text for text in printed if text.startswith("(the oldest")]
    assert notes and notes[-1] != notes[0]


def test_commands_and_empty_lines_are_no_turns(conversation):
    talk = conversation()
    printed = spoken(talk, [LINES[0], "", "  ", "/new", LINES[1], "/quit", LINES[2]])
    assert printed[1] == "(a new conversation)" and len(printed) == 3
    assert [turn.text for turn in talk.turns if turn.role == "user"] == [LINES[1]]


def test_ctrl_c_ends_a_reply_and_the_conversation_goes_on(conversation, params, capsys):
    talk = conversation()
    talk.params = factory.params(generate=factory.generate(max_length=64, max_new_tokens=24))
    whole, _ = said(talk, LINES[0])
    talk.turns, steps = [], iter(range(100))
    # Before the twentieth token; a hook that returns anything but None changes the arguments.
    presses = talk.model.register_forward_pre_hook(
        lambda *_: signal.raise_signal(signal.SIGINT) if next(steps) == 19 else None
    )
    show(talk.say(LINES[0])[0])
    presses.remove()
    printed, kept = capsys.readouterr().out, talk.turns[-1].text
    assert printed == f"{visible(kept)} (stopped)\n" and 0 < len(kept) < len(whole) and whole.startswith(kept)
    assert torch.is_grad_enabled()
    assert said(talk, LINES[1])[0] and len(talk.turns) == 4


def test_sigterm_ends_a_reply_and_the_command():
    def reply():
        yield "a"
        raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        show(reply())


def test_a_reply_keeps_its_line_breaks_and_no_control_characters(capsys):
    show(piece for piece in ["so\x1b[31m", "\r\n\n red\x07", "\u2028end"])
    show(piece for piece in [])
    assert capsys.readouterr().out == "so\ufffd[31m\n\n red\ufffd\nend\n(an empty reply)\n"


def test_an_instruction_is_read_and_is_no_turn(conversation):
    plain, told = conversation(), replace(conversation(), instruction="nobody listens to me")
    assert said(plain, LINES[0]) != said(told, LINES[0])
    assert [turn.role for turn in told.turns] == ["user", "assistant"]


def test_what_is_not_there_is_named(params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'dbo' is none of variants: base, sft, sft-dpo"):
        require("dbo", params)
    with pytest.raises(UserError, match=r"models/base is missing: `dvc repro generate@sft-dpo` trains"):
        require("sft-dpo", params)


def test_an_unknown_variant_is_an_error_before_anything_is_loaded():
    done = subprocess.run(
        [sys.executable, "-m", "attune", "chat", "nobody"], cwd=ROOT, input="hello\n", text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert "none of variants" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_screen_shows_the_notice_the_prompt_and_the_replies_alone(tmp_path):
    """In a terminal, as somebody uses it: a line, then Ctrl-C at the prompt."""
    small.make(tmp_path, 32, [*small.OVERRIDES, "generate.max_length=64", "generate.max_new_tokens=8"])
    terminal, inner = os.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "attune", "chat", "base"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=inner, stdout=inner, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(inner)
    begin = read_until(terminal, "you> ")
    os.write(terminal, "i feel so 😀 sad\n".encode())
    reply = read_until(terminal, "you> ")
    assert interrupted(chat, terminal) == b"loading base \xe2\x80\xa6\n"
    os.close(terminal)
    assert chat.returncode == 0
    assert begin == f"{NOTICE}\nyou> ".replace("\n", "\r\n")
    echoed, answered, prompt = reply.split("\r\n")
    assert echoed == "i feel so 😀 sad" and answered.startswith("base> ") and prompt == "you> "


def interrupted(process, terminal):
    """What a process printed to stderr, ended by Ctrl-C in its terminal.

    Python looks for signals, then waits for a line: one that arrives in between is lost, and Ctrl-C is pressed again.
    """
    while True:
        os.write(terminal, b"\x03")
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=20)[1]


def read_until(terminal, end):
    """What the terminal shows up to `end`."""
    shown = b""
    while not shown.endswith(end.encode()):
        shown += os.read(terminal, 4096)
    return shown.decode()
