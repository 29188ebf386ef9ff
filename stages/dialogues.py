"""The one shape of a dialogue, whatever corpus it came from, and its parquet form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Role = Literal["user", "assistant"]
SPLITS = ("train", "valid", "test")


class CorpusError(UserError):
    """A corpus file cannot be read; the message names file, line and cause."""


@dataclass(frozen=True)
class Turn:
    """One turn: who speaks, what, and the corpus's label of the act (strategy, behaviour) where it has one."""

    role: Role
    text: str
    act: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """A dialogue whose consecutive turns alternate between user and assistant."""

    id: str
    corpus: str
    split: str
    label: str
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """All turns, normalised: lower-cased words and digits with single spaces. Equal text is the same dialogue."""
        return normalise(" ".join(turn.text for turn in self.turns))


@dataclass(frozen=True)
class Example:
    """A target and its context: the last assistant turn and all turns before it (EmPO section 3)."""

    id: str
    label: str
    context: tuple[Turn, ...]
    target: str


def normalise(text: str) -> str:
    """Lower-cased words and digits, joined by single spaces: what counts as the same text."""
    return " ".join(re.findall(r"\w+", text.lower()))


def join_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Join consecutive turns of one role with a space; the act of the first is kept."""
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(turn.role, f"{joined[-1].text} {turn.text}", joined[-1].act)
        else:
            joined.append(turn)
    return tuple(joined)


def last_assistant_turn(dialogue: Dialogue) -> int | None:
    """Index of the last assistant turn that has a context before it; None where there is none."""
    answers = [i for i, turn in enumerate(dialogue.turns) if turn.role == "assistant" and i > 0]
    return answers[-1] if answers else None


def example(dialogue: Dialogue) -> Example:
    """The dialogue's target with its context.

    Raises:
        ValueError: the dialogue has no assistant turn with a context; stage `prepare` drops and counts those.
    """
    index = last_assistant_turn(dialogue)
    if index is None:
        raise ValueError(f"dialogue {dialogue.id!r} has no assistant turn after a user's")
    return Example(dialogue.id, dialogue.label, dialogue.turns[:index], dialogue.turns[index].text)


def write_dialogues(dialogues: Sequence[Dialogue], path: Path) -> None:
    """Write parquet with the columns id, corpus, split, label, turns (a list of role, text, act)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [(name, pa.string()) for name in ("id", "corpus", "split", "label")]
    table = pa.Table.from_pylist(
        [asdict(d) for d in dialogues], schema=pa.schema([*columns, ("turns", turn_list_type())])
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def turn_list_type() -> pa.DataType:
    """The Arrow type of turns: a list of role, text, act."""
    import pyarrow as pa

    return pa.list_(pa.struct([("role", pa.string()), ("text", pa.string()), ("act", pa.string())]))


def read_dialogues(path: Path) -> list[Dialogue]:
    """Read what `write_dialogues` wrote."""
    import pyarrow.parquet as pq

    return [Dialogue(**{**row, "turns": to_turns(row["turns"])}) for row in pq.read_table(path).to_pylist()]


def to_turns(records: Iterable[dict[str, Any]]) -> tuple[Turn, ...]:
    """Turns from their parquet form."""
    return tuple(Turn(**record) for record in records)
