"""Talk to a trained variant in the terminal.

    python -m attune chat --variant sft-dpo

A line is a turn; an empty one is passed over, `/new` begins anew, `/quit` or the end of the input ends. What does not
fit into `generate.max_length` is left out of what the model reads, the oldest exchanges first, with a word. Nothing of
the conversation is kept.
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
    "What answers is a language model, not a person, and no help in a crisis: where somebody is in danger, call the "
    "emergency services. /new begins anew, /quit ends; nothing is kept."
)
END, ANEW = "/quit", "/new"


@dataclass
class Conversation:
    """A model and what was said to it and by it; `say` answers."""

    model: Any
    tokenizer: Any
    params: Params
    instruction: str | None
    turns: list[Turn] = field(default_factory=list)

    def say(self, text: str) -> tuple[str, int]:
        """Add what the user says and what the model answers.

        Returns:
            The answer, and how many of the turns before it the model did not read, since they did not fit.
        """
        from attune.generation.generate import generate_replies
        from attune.generation.sampling import Draws
        from attune.models.chat_template import encode_prompt
        from attune.models.system_prompt import fit_instructed

        settings, turns = self.params.generate, [*self.turns, Turn("user", text)]
        room = settings.max_length - settings.max_new_tokens
        read = fit_instructed(self.tokenizer, turns, self.instruction, room)
        prompt = encode_prompt(self.tokenizer, read, room)
        seed = uniform(2**63, self.params.seed, len(turns), text)
        draws = Draws(settings.temperature, settings.top_p, [seed]) if settings.do_sample else None
        [reply] = generate_replies(
            self.model, self.tokenizer, [prompt], settings.max_new_tokens, self.params.hardware, draws
        )
        # A template has no place for a turn that says nothing.
        self.turns = [*turns, Turn("assistant", reply)] if reply else self.turns
        return reply, len(turns) - sum(turn.role != "system" for turn in read)


def begin(variant: str, params: Params) -> Conversation:
    """Load a variant.

    Raises:
        UserError: there is no such variant, or it has not been trained here.
    """
    from attune.models.loading import load_tokenizer, load_variant, require_positions
    from attune.models.system_prompt import read_instruction

    one = named(params.variants, variant, "variants")
    for folder in (BASE, Path(one.model)):
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: `dvc repro generate@{variant}` trains what variant {variant} needs")
    model = load_variant(BASE, Path(one.model), params.hardware)
    require_positions(model, "generate.max_length", params.generate.max_length)
    instruction = read_instruction(one.instruction_file) if one.instruction_file else None
    return Conversation(model, load_tokenizer(BASE), params, instruction)


def answers(conversation: Conversation, lines: Iterable[str]) -> Iterator[str]:
    """What is printed under each line that somebody types, until they end."""
    for line in lines:
        match line.strip():
            case "":
                continue
            case command if command == END:
                return
            case command if command == ANEW:
                conversation.turns = []
                yield "(a new conversation)"
            case text:
                reply, left_out = conversation.say(text)
                if left_out:
                    yield f"(the oldest {left_out} turns no longer fit, and were not read)"
                yield "\n".join(map(visible, reply.splitlines())) or "(an empty reply)"


def typed() -> Iterator[str]:
    """Lines of the standard input, with a prompt where a person types them."""
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
