"""The records of all corpora, dialogues and examples, and the parquet form of dialogues."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attune.runtime.arrow_stream import read_batches, write_table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

# A dialogue, a context and a prompt have at most one system turn, the first.
Role = Literal["system", "user", "assistant"]
Targets = Literal["last", "every"]
SPLITS = ("train", "valid", "test")
# ASCII to lower case, and to a space where it is no letter, digit or underscore.
FOLDED = bytes(ord(chr(i).lower()) if i < 128 and (chr(i).isalnum() or chr(i) == "_") else 32 for i in range(256))


@dataclass(frozen=True)
class Turn:
    """One turn: the speaker, the text, and the act (strategy, behaviour) if the corpus labels it."""

    role: Role
    text: str
    act: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """A dialogue whose consecutive turns alternate between user and assistant, after a system turn if it has one.

    `label` is its emotion, problem or topic, empty if the corpus has none; `quality`, high or low, is the assistant's,
    if the corpus rates it.
    """

    id: str
    corpus: str
    split: str
    label: str
    turns: tuple[Turn, ...]
    quality: str | None = None

    @property
    def text(self) -> str:
        """The normalised text of all turns, which identifies a dialogue."""
        return normalise(" ".join(turn.text for turn in self.turns))


@dataclass(frozen=True)
class Example:
    """A target, which is an assistant turn, and its context, the turns before it.

    The context alternates, and starts and ends with a user turn: chat templates require a user turn first. The
    dialogue's system turn, if it has one, comes before that. `act` is the target's, `label` and `quality` are the
    dialogue's.
    """

    id: str
    label: str
    context: tuple[Turn, ...]
    target: str
    act: str | None = None
    quality: str | None = None


def normalise(text: str) -> str:
    """The words of a text (NFKC, casefold) without punctuation, with single spaces; equal results are equal texts."""
    if text.isascii():
        # The same as below, several times faster.
        return b" ".join(text.encode().translate(FOLDED).split()).decode()
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def text_keys(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Keys to compare many normalised texts by: 64 bits of SipHash, (N,).

    The probability that two of n different texts have the same key is below n**2 / 2**65.
    """
    import numpy as np
    from pandas.util import hash_array

    return hash_array(np.array(texts, object), categorize=False)


def context_key(turns: Sequence[Turn]) -> str:
    """What is equal for equal contexts: the words of all turns, without case, punctuation and spacing."""
    text = " ".join(turn.text for turn in turns)
    return normalise(text) or text.strip()


def join_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Join consecutive turns of one role with a space; the joined turn has the last act."""
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            last = joined[-1]
            joined[-1] = Turn(turn.role, f"{last.text} {turn.text}", turn.act or last.act)
        else:
            joined.append(turn)
    return tuple(joined)


def from_first_user(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns from the first user turn on, after the system turn."""
    system, others = split_system(turns)
    start = next((i for i, turn in enumerate(others) if turn.role == "user"), len(others))
    return (*system, *others[start:])


def split_system(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """The system turn, if it is the first turn, and the others."""
    end = 1 if turns and turns[0].role == "system" else 0
    return tuple(turns[:end]), tuple(turns[end:])


def join_system(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns with the system turn as the beginning of the first user turn, for chat templates that have none."""
    system, others = split_system(turns)
    first = next((i for i, turn in enumerate(others) if turn.role == "user"), None)
    if not system or first is None:
        return (*(Turn("user", turn.text) for turn in system), *others)
    joined = Turn("user", f"{system[0].text}\n\n{others[first].text}", others[first].act)
    return (*others[:first], joined, *others[first + 1 :])


def dialogue_of(example: str, targets: Targets) -> str:
    """The dialogue's id, from an example's id."""
    return example.rpartition(":")[0] if targets == "every" else example


def dialogue_table(dialogues: Sequence[Dialogue]) -> pa.Table:
    """A row for each dialogue, with the columns of `dialogue_schema`."""
    import numpy as np
    import pyarrow as pa

    names = ("id", "corpus", "split", "label")
    columns: list[pa.Array] = [
        pa.array([getattr(dialogue, name) for dialogue in dialogues], pa.string()) for name in names
    ]
    ends = np.cumsum([0, *(len(dialogue.turns) for dialogue in dialogues)], dtype=np.int32)
    all_turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    fields = [pa.array([getattr(turn, name) for turn in all_turns], pa.string()) for name in ("role", "text", "act")]
    turns = pa.StructArray.from_arrays(fields, fields=list(turn_list_type().value_type))
    columns.append(pa.ListArray.from_arrays(pa.array(ends), turns, type=turn_list_type()))
    columns.append(pa.array([dialogue.quality for dialogue in dialogues], pa.string()))
    return pa.table(columns, schema=dialogue_schema())


def dialogue_schema() -> pa.Schema:
    """The columns id, corpus, split, label, turns (a list of role, text, act) and quality."""
    import pyarrow as pa

    columns = [(name, pa.string()) for name in ("id", "corpus", "split", "label")]
    return pa.schema([*columns, ("turns", turn_list_type()), ("quality", pa.string())])


def write_dialogues(dialogues: Sequence[Dialogue], path: Path) -> None:
    """Write `dialogue_table` as parquet."""
    write_table(path, dialogue_table(dialogues))


def turn_list_type() -> pa.DataType:
    """The Arrow type of turns: a list of role, text, act."""
    import pyarrow as pa

    return pa.list_(pa.struct([("role", pa.string()), ("text", pa.string()), ("act", pa.string())]))


def read_dialogues(path: Path) -> list[Dialogue]:
    """Read what `write_dialogues` wrote."""
    return list(stream_dialogues(path))


def stream_dialogues(path: Path) -> Iterator[Dialogue]:
    """As `read_dialogues`, one at a time."""
    for table in read_batches(path):
        for row in table.to_pylist():
            yield Dialogue(**{**row, "turns": to_turns(row["turns"])})


def to_turns(records: Iterable[dict[str, Any]]) -> tuple[Turn, ...]:
    """Turns from their parquet form."""
    return tuple(Turn(**record) for record in records)
