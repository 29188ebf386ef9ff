"""The instruction in `pairs.instruction`: the system turn of every prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from attune.config.schema import Pairs
from attune.data.dialogue import Example, add_system, to_turns, turn_list_type
from attune.data.pair import Pair
from attune.models.system_prompt import read_instruction
from attune.pairs.ranked import ScoredPair

if TYPE_CHECKING:
    import pyarrow as pa


def instruction_of(settings: Pairs) -> str | None:
    """The text, or None.

    Raises:
        UserError: the file is missing, not UTF-8 or empty.
    """
    file = settings.instruction_file
    return read_instruction(file, "pairs") if file else None


def instructed(pairs: Iterable[Pair | ScoredPair], settings: Pairs) -> list[Pair | ScoredPair]:
    """The pairs with the instruction before their prompts."""
    text = instruction_of(settings)
    return [replace(pair, prompt=add_system(pair.prompt, text)) if text else pair for pair in pairs]


def instructed_examples(examples: Iterable[Example], settings: Pairs) -> list[Example]:
    """The examples with the instruction before their contexts: what a model reads that replies to them."""
    text = instruction_of(settings)
    return [replace(one, context=add_system(one.context, text)) if text else one for one in examples]


def instructed_contexts(contexts: pa.ChunkedArray, text: str | None) -> pa.ChunkedArray | pa.Array:
    """As `instructed`, of a column of lists of turns."""
    import pyarrow as pa

    if not text:
        return contexts
    rows = [[asdict(turn) for turn in add_system(to_turns(row), text)] for row in contexts.to_pylist()]
    return pa.array(rows, turn_list_type())
