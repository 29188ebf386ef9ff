"""Talk to a trained variant in the terminal.

    python -m attune chat --variant sft-dpo

Each line is a turn; empty lines are ignored, `/new` starts a new conversation, `/quit` or the end of the input ends.
Turns that do not fit into `generate.max_length` are truncated, the oldest exchanges first, with a notice. Nothing of
the conversation is stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params
from attune.data.dialogue import Turn
from attune.data.keyed import uniform
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError, visible

BASE = Path("models/base")
NOTICE = (
    "A language model answers, not a person, and it is no help in a crisis: if somebody is in danger, call the "
    "emergency services. /new starts a new conversation, /quit ends; nothing is stored."
)
QUIT, NEW = "/quit", "/new"


@dataclass
class Conversation:
    """A model and the turns so far; `say` adds the user's turn and the model's."""

    model: Any
    tokenizer: Any
    params: Params
    instruction: str | None
    turns: list[Turn] = field(default_factory=list)

    def say(self, text: str) -> tuple[str, int]:
        """Add a user turn and the model's reply.

        Returns:
            The reply, and the number of turns that were truncated because they did not fit.
        """
        from attune.generation.generate import generate_replies
        from attune.generation.sampling import Draws
        from attune.models.chat_template import encode_prompt
        from attune.models.system_prompt import fit_instructed

        settings, turns = self.params.generate, [*self.turns, Turn("user", text)]
        budget = settings.max_length - settings.max_new_tokens
        kept = fit_instructed(self.tokenizer, turns, self.instruction, budget)
        prompt = encode_prompt(self.tokenizer, kept, budget)
        seed = uniform(2**63, self.params.seed, len(turns), text)
        draws = Draws(settings.temperature, settings.top_p, [seed]) if settings.do_sample else None
        [reply] = generate_replies(
            self.model, self.tokenizer, [prompt], settings.max_new_tokens, self.params.hardware, draws
        )
        # Chat templates refuse an empty turn.
        self.turns = [*turns, Turn("assistant", reply)] if reply else self.turns
        return reply, len(turns) - sum(turn.role != "system" for turn in kept)


def begin(variant: str, params: Params) -> Conversation:
    """Load a variant.

    Raises:
        UserError: there is no such variant, or its model is missing.
    """
    from attune.models.loading import load_tokenizer, load_variant, require_positions
    from attune.models.system_prompt import read_instruction

    settings = named(params.variants, variant, "variants")
    for folder in (BASE, Path(settings.model)):
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: `dvc repro generate@{variant}` trains what variant {variant} needs")
    model = load_variant(BASE, Path(settings.model), params.hardware)
    require_positions(model, "generate.max_length", params.generate.max_length)
    instruction = read_instruction(settings.instruction_file) if settings.instruction_file else None
    return Conversation(model, load_tokenizer(BASE), params, instruction)


def answers(conversation: Conversation, lines: Iterable[str]) -> Iterator[str]:
    """The text to print after each line of input, until `/quit`."""
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
                yield "\n".join(map(visible, reply.splitlines())) or "(an empty reply)"


def typed() -> Iterator[str]:
    """Lines of the standard input, with a prompt in a terminal."""
    while True:
        try:
            yield input("you> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return


def main(argv: Sequence[str]) -> None:
    """Talk until the input ends."""
    parser = command_parser("chat", __doc__)
    parser.add_argument("--variant", required=True, help="a key of variants, such as sft-dpo")
    variant = parser.parse_args(argv).variant
    conversation = begin(variant, load())
    print(f"{NOTICE}\n")
    for text in answers(conversation, typed()):
        print(f"{variant}> {text}", flush=True)
