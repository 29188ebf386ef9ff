"""The one shape of a dialogue, whatever corpus it came from, and its parquet form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attune.runtime.arrow_stream import read_batches
from attune.runtime.io import write_table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from attune.config.schema import Context

# An instruction (system) stands before a prompt, in no dialogue.
Role = Literal["system", "user", "assistant"]
Targets = Literal["last", "every"]
SPLITS = ("train", "valid", "test")
# Of ASCII the words without case and spaces between them: what `normalise` does where it is called most.
FOLDED = bytes(ord(chr(i).lower()) if i < 128 and (chr(i).isalnum() or chr(i) == "_") else 32 for i in range(256))


@dataclass(frozen=True)
class Turn:
    """One turn: who speaks, what, and the corpus's label of the act (strategy, behaviour) where it has one."""

    role: Role
    text: str
    act: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """A dialogue whose consecutive turns alternate between user and assistant.

    `label` is what it is about (emotion, problem, topic), `quality` the corpus's judgement of how well the assistant
    did (high or low), where it has one.
    """

    id: str
    corpus: str
    split: str
    label: str
    turns: tuple[Turn, ...]
    quality: str | None = None

    @property
    def text(self) -> str:
        """All turns, normalised: words and digits without case, with single spaces. Equal text is the same dialogue."""
        return normalise(" ".join(turn.text for turn in self.turns))


@dataclass(frozen=True)
class Example:
    """A target, which is an assistant turn, its act where the corpus has one, and the turns before it.

    The context alternates, begins and ends with a user turn: chat templates refuse an assistant who speaks first.
    `quality` is the dialogue's.
    """

    id: str
    label: str
    context: tuple[Turn, ...]
    target: str
    act: str | None = None
    quality: str | None = None


def normalise(text: str) -> str:
    """Words and digits without case (NFKC, casefold), joined by single spaces: what counts as the same text."""
    if text.isascii():
        return b" ".join(text.encode().translate(FOLDED).split()).decode()
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def text_keys(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """What stands for each text, as `normalise` gives it, where many are compared: 64 bits of SipHash.

    Of n texts two different ones have the same key with a probability below n**2 / 2**65.
    """
    import numpy as np
    from pandas.util import hash_array

    return hash_array(np.array(texts, object), categorize=False)


def join_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Join consecutive turns of one role with a space; of their acts the last stands, which the turn ends on."""
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            last = joined[-1]
            joined[-1] = Turn(turn.role, f"{last.text} {turn.text}", turn.act or last.act)
        else:
            joined.append(turn)
    return tuple(joined)


def from_first_user(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns without those before the first user turn."""
    start = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return tuple(turns[start:])


def examples(dialogue: Dialogue, targets: Targets, max_context_turns: int | None) -> list[Example]:
    """The dialogue's targets, each with its context.

    Args:
        dialogue: turns alternate; an assistant turn without a user turn before it is no target.
        targets: last: the last assistant turn alone, whose example has the dialogue's id (EmPO section 3); every: each
            assistant turn, with the id `<dialogue id>:<index of the turn>`.
        max_context_turns: the last turns before the target that are kept; null: all. A context begins with a user
            turn, so an even number keeps one less.

    Returns:
        In the order of the turns; empty where there is no target (stage `prepare` drops and counts such dialogues).
    """
    turns = dialogue.turns
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant" and i > 0]
    found = []
    for i in answers if targets == "every" else answers[-1:]:
        start = 0 if max_context_turns is None else max(0, i - max_context_turns)
        name = f"{dialogue.id}:{i}" if targets == "every" else dialogue.id
        context = from_first_user(turns[start:i])
        found.append(Example(name, dialogue.label, context, turns[i].text, turns[i].act, dialogue.quality))
    return found


def dialogue_of(example: str, targets: Targets) -> str:
    """The id of the dialogue that an example is of, from the id that `examples` gave it."""
    return example.rpartition(":")[0] if targets == "every" else example


def read_examples(path: Path, context: Context) -> list[Example]:
    """The examples of the dialogues in `path`, with the targets and contexts that the params ask for."""
    return [one for dialogue in read_dialogues(path) for one in examples(dialogue, context.targets, context.max_turns)]


def dialogue_table(dialogues: Sequence[Dialogue]) -> pa.Table:
    """The columns id, corpus, split, label, turns (a list of role, text, act), quality; a row a dialogue."""
    import numpy as np
    import pyarrow as pa

    names = ("id", "corpus", "split", "label")
    columns: list[pa.Array] = [pa.array([getattr(one, name) for one in dialogues], pa.string()) for name in names]
    ends = np.cumsum([0, *(len(one.turns) for one in dialogues)], dtype=np.int32)
    spoken = [turn for one in dialogues for turn in one.turns]
    fields = [pa.array([getattr(turn, name) for turn in spoken], pa.string()) for name in ("role", "text", "act")]
    turns = pa.StructArray.from_arrays(fields, fields=list(turn_list_type().value_type))
    columns.append(pa.ListArray.from_arrays(pa.array(ends), turns, type=turn_list_type()))
    columns.append(pa.array([one.quality for one in dialogues], pa.string()))
    return pa.table(columns, schema=dialogue_schema())


def dialogue_schema() -> pa.Schema:
    """The columns of dialogues."""
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
    """As `read_dialogues`, one by one."""
    for table in read_batches(path):
        for row in table.to_pylist():
            yield Dialogue(**{**row, "turns": to_turns(row["turns"])})


def to_turns(records: Iterable[dict[str, Any]]) -> tuple[Turn, ...]:
    """Turns from their parquet form."""
    return tuple(Turn(**record) for record in records)
