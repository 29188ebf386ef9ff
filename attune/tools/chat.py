"""Talk to a trained variant in the terminal.

    python -m attune chat sft-dpo
    python -m attune chat sft-dpo --endpoint http://127.0.0.1:8766/v1

loads the variant, or asks an OpenAI-compatible endpoint (`python -m attune serve`) that calls its model so; the
environment variable ATTUNE_KEY holds the endpoint's key, if it needs one.

Each line is a turn; empty lines are ignored, `/new` starts a new conversation, `/quit`, Ctrl-C or the end of the input
(Ctrl-D) ends. A reply appears word by word; Ctrl-C ends it where it is. Turns that do not fit into
`generate.max_length` are truncated, the oldest exchanges first, with a notice (an endpoint gets them all). Nothing of
the conversation is stored.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attune.config.params import load, with_model
from attune.config.schema import Params, Variant
from attune.data.dialogue import Turn
from attune.data.keyed import uniform
from attune.runtime.cli import command_parser
from attune.runtime.errors import Stopped, UserError, visible
from attune.tools.remote import Remote

BASE = Path("models/base")
NOTICE = """\
A language model answers, not a person, and it is no help in a crisis: if
somebody is in danger, call the emergency services. /new starts a new
conversation, /quit ends; nothing is stored.
"""
QUIT, NEW = "/quit", "/new"


@dataclass
class Conversation:
    """A model and the turns so far; `say` adds the user's turn and the model's."""

    model: Any
    tokenizer: Any
    params: Params
    instruction: str | None
    turns: list[Turn] = field(default_factory=list)

    def say(self, text: str) -> tuple[Generator[str], int]:
        """Add a user turn and the model's reply, as far as it is read.

        Returns:
            The reply in pieces as it is decoded, and the number of turns that were truncated because they did not fit.
        """
        from attune.models.chat_template import encode_prompt
        from attune.models.system_prompt import fit_instructed

        settings, turns = self.params.generate, [*self.turns, Turn("user", text)]
        budget = settings.max_length - settings.max_new_tokens
        kept = fit_instructed(self.tokenizer, turns, self.instruction, budget)
        prompt = encode_prompt(self.tokenizer, kept, budget)
        return self._reply(prompt, turns), len(turns) - sum(turn.role != "system" for turn in kept)

    def _reply(self, prompt: list[int], turns: list[Turn]) -> Generator[str]:
        from attune.generation.generate import stream_reply
        from attune.generation.sampling import Draws

        settings, hardware = self.params.generate, self.params.hardware
        seed = uniform(2**63, self.params.seed, len(turns), turns[-1].text)
        draws = Draws(settings.temperature, settings.top_p, [seed]) if settings.do_sample else None
        reply = ""
        for piece in stream_reply(self.model, self.tokenizer, prompt, settings.max_new_tokens, hardware, draws):
            reply += piece
            # Only here: chat templates refuse an empty turn.
            self.turns = [*turns, Turn("assistant", reply)]
            yield piece


def require(variant: str, params: Params) -> Variant:
    """The settings of a variant whose model is there.

    Raises:
        UserError: there is no such variant, or its model is missing.
    """
    settings = with_model(params, variant)
    for folder in (BASE, Path(settings.model)):
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: `dvc repro generate@{variant}` trains what variant {variant} needs")
    return settings


def begin(settings: Variant, params: Params) -> Conversation:
    """Load a variant."""
    from attune.models.loading import load_tokenizer, load_variant, require_positions
    from attune.models.system_prompt import read_instruction

    model = load_variant(BASE, Path(settings.model), params.hardware)
    require_positions(model, "generate.max_length", params.generate.max_length)
    instruction = read_instruction(settings.instruction_file) if settings.instruction_file else None
    return Conversation(model, load_tokenizer(BASE), params, instruction)


def answers(conversation: Conversation | Remote, lines: Iterable[str]) -> Iterator[str | Generator[str]]:
    """What to print after each line of input, until `/quit`: a note, or a reply in pieces as it is decoded."""
    for line in lines:
        match line.strip():
            case "":
                continue
            case command if command == QUIT:
                return
            case command if command == NEW:
                conversation.turns = []
                yield "(a new conversation)"
            case text:
                reply, left_out = conversation.say(text)
                if left_out:
                    yield f"(the oldest {left_out} turns no longer fit, and were not read)"
                yield reply


def show(reply: Generator[str]) -> None:
    """Print a reply piece by piece, with its line breaks but no other control characters; Ctrl-C ends it."""
    shown = False
    try:
        with closing(reply):
            for piece in reply:
                print("\n".join(map(visible, piece.splitlines())), end="", flush=True)
                shown = True
        print("" if shown else "(an empty reply)")
    except Stopped:
        raise
    except KeyboardInterrupt:
        print(" (stopped)")


def typed() -> Iterator[str]:
    """Lines of the standard input, with a prompt in a terminal, until Ctrl-D or Ctrl-C."""
    terminal = sys.stdin.isatty()
    while True:
        try:
            # input(prompt) would write it to stderr.
            print("you> " if terminal else "", end="", flush=True)
            yield input()
        except (EOFError, KeyboardInterrupt) as end:
            if isinstance(end, Stopped):
                raise
            if terminal:
                print()
            return


def quiet() -> None:
    """Keep progress bars, warnings and logs of libraries from the screen."""
    from transformers.utils.logging import disable_progress_bar

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()


def main(argv: Sequence[str]) -> None:
    """Talk until the input ends."""
    parser = command_parser("chat", __doc__)
    parser.add_argument("variant", help="a key of variants, such as sft-dpo; with --endpoint the model's name there")
    parser.add_argument("--endpoint", metavar="URL", help="ask an endpoint instead of loading the variant")
    arguments = parser.parse_args(argv)
    variant, params = arguments.variant, load()
    conversation: Conversation | Remote
    if arguments.endpoint:
        print(NOTICE, flush=True)
        conversation = Remote(arguments.endpoint, variant, params.generate)
    else:
        settings = require(variant, params)
        print(NOTICE, flush=True)
        print(f"loading {variant} …", file=sys.stderr, flush=True)
        quiet()
        conversation = begin(settings, params)
    for answer in answers(conversation, typed()):
        print(f"{variant}> ", end="", flush=True)
        print(answer) if isinstance(answer, str) else show(answer)
