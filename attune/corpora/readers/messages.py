"""Chats as lists of turns, in the forms of chat APIs, ShareGPT and this pipeline, to `Dialogue` records.

    {"id": …, "label": …, "split": …, "messages": [{"role": "user", "content": …}, …]}
    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}
    {"id": …, "corpus": …, "split": …, "label": …, "turns": [{"role": …, "text": …, "act": …}, …], "quality": …}

`attune.corpora.readers.message_files` says which files hold them. Only the list of turns is needed. Section
`corpus.messages` of the params names columns and keys that are called otherwise.

A dialogue begins with at most one system turn, by `corpus.messages.system`. Its split is that of its file's name, else
that of its column; splits that neither names are cut from the train dialogues by a hash of the id, or of the words
if it has no id.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attune.config.schema import Messages, Shares
from attune.corpora.readers.message_files import Names, data_files, read_file
from attune.corpora.splits import split_by_hash, text_hash
from attune.data.chat import read_turn, text_or_number
from attune.data.dialogue import Dialogue, Turn, join_system, join_turns, normalise
from attune.runtime.errors import DataError
from attune.runtime.records import shown

CORPUS = "messages"
TURNS = ("messages", "conversations", "conversation", "turns")
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
QUALITIES = ("high", "low")
NAMES = ("hub_id", "subset", "turns", "role", "content", "id", "label", "split")
SHARES = {"train": 70, "valid": 15, "test": 15}
# What conf/config.yaml has, for folders that a classifier reads.
USUAL = Messages(
    **dict.fromkeys(NAMES), **{"revision": "main", "splits": {}, "shares": Shares(**SHARES), "system": "keep"}
)
# Bad dialogues that an error lists, and characters of each.
SHOWN, WIDTH = 20, 300


class BadRecord(Exception):
    """What is wrong with a dialogue."""


class Source(NamedTuple):
    """A file, and the split that its name says."""

    path: Path
    split: str | None


def read(
    folder: Path, file: str | None = None, messages: Messages | None = None
) -> tuple[list[Dialogue], Counter[str]]:
    """Read the files of `folder`.

    Args:
        folder: with files of chats.
        file: the only one to read; None: all.
        messages: names of columns and keys, shares of splits, what to do with system turns; None: the usual ones.

    Returns:
        The dialogues in order of the files, and an empty counter, since this reader drops nothing.

    Raises:
        DataError: a file is missing or damaged, or dialogues do not fit; lists the first `SHOWN` by file and line.
    """
    dropped: Counter[str] = Counter()
    return list(stream(folder, dropped, file, messages)), dropped


def stream(
    folder: Path, dropped: Counter[str], file: str | None = None, messages: Messages | None = None
) -> Iterator[Dialogue]:
    """As `read`, one dialogue at a time; in memory are 8 bytes of each dialogue's id."""
    chats = _Chats(folder, file, messages or USUAL)
    seen, problems, bad = array("Q"), list[str](), 0
    for where, record, split in chats.records():
        try:
            dialogue = chats.dialogue(where, record, split)
        except BadRecord as problem:
            bad += 1
            problems += [f"{where}{problem}"[: len(where) + WIDTH]] if bad <= SHOWN else []
            continue
        seen.append(text_hash(dialogue.id))
        yield dialogue
    if problems:
        more = [f"… and {bad - SHOWN} more bad dialogues"] if bad > SHOWN else []
        raise DataError("\n".join([*problems, *more]))
    chats.require_unique(np.frombuffer(seen, np.uint64))
    chats.tell()


class _Chats:
    """The files of a folder, read by the params; counts what is done to turns."""

    def __init__(self, folder: Path, file: str | None, settings: Messages) -> None:
        self._folder, self._settings = folder, settings
        self._known = SPLIT_NAMES | settings.splits
        self._names = Names(
            (settings.turns,) if settings.turns else TURNS,
            settings.id or "id",
            settings.label or "label",
            settings.split or "split",
        )
        self._sources = self._with_splits(data_files(folder, file))
        named = {source.split for source in self._sources} - {None} or self._named_in_records()
        shares = vars(settings.shares).items()
        self._shares: dict[str, int] = {
            split: share for split, share in shares if split == "train" or split not in named
        }
        self._done: Counter[str] = Counter()

    def records(self) -> Iterator[tuple[str, dict[str, Any], str | None]]:
        """The place of each dialogue, its record, and the split that its file names."""
        for source in self._sources:
            for where, record in read_file(source.path, self._names):
                yield where, record, source.split

    def dialogue(self, where: str, record: Mapping[str, Any], split: str | None) -> Dialogue:
        """The dialogue of a record.

        Raises:
            BadRecord: it is none.
        """
        turns = _turns(record, self._settings, self._done)
        name = _value(record, self._settings.id, "id")
        split = split or self._named(where, record) or "train"
        if split == "train":
            split = split_by_hash(name or normalise(" ".join(turn.text for turn in turns)), self._shares)
        # Without an id, a dialogue is called by its place.
        name = (name or where.removeprefix(f"{self._folder}/")).removeprefix(f"{split}/")
        quality = _value(record, None, "quality")
        if quality not in (None, *QUALITIES):
            raise BadRecord(f": quality {quality!r} is none of {', '.join(QUALITIES)}")
        label = _value(record, self._settings.label, "label") or ""
        return Dialogue(f"{split}/{name}", CORPUS, split, label, turns, quality)

    def require_unique(self, keys: npt.NDArray[np.uint64]) -> None:
        """Check that no id is there twice in a split, by their hashes; reads the files again to name the places.

        Raises:
            DataError: two dialogues have the same id; names both.
        """
        keys = np.sort(keys)
        twice = set(keys[1:][keys[1:] == keys[:-1]].tolist())
        places: dict[str, str] = {}
        for where, record, split in self.records() if twice else ():
            name = self.dialogue(where, record, split).id
            if name in places:
                raise DataError(f"{where}: its id {name!r} is also that of {places[name]}: ids are unique in a split")
            if text_hash(name) in twice:
                places[name] = where

    def tell(self) -> None:
        """Say what was done to splits and turns."""
        said = []
        if len(self._shares) > 1:
            percent = ", ".join(f"{split} {share}" for split, share in self._shares.items())
            said.append(f"splits are cut by a hash of the id, or of the words without an id ({percent})")
        if self._done["joined"]:
            said.append(f"{self._done['joined']} turns are joined to the one before, which has the same role")
        if self._done["system"]:
            done = {
                "keep": "kept; a chat template that has none gets them before the first user turn",
                "join": "put before the first user turn",
            }[self._settings.system]
            said.append(f"{self._done['system']} system turns are {done} (corpus.messages.system)")
        for sentence in said:
            print(f"{self._folder}: {sentence}", file=sys.stderr)

    def _with_splits(self, paths: Sequence[Path]) -> list[Source]:
        """The files with the splits that their names begin with: `train.jsonl`, `test-00000-of-00002.parquet`.

        Raises:
            DataError: some files name a split and others do not.
        """
        sources = [Source(path, self._known.get(re.split(r"[.-]", path.name)[0])) for path in paths]
        without = [source.path for source in sources if source.split is None]
        if without and len(without) < len(sources):
            raise DataError(
                f"{without[0]} names no split, but {len(sources) - len(without)} other files do: begin its name with "
                "train, valid or test, or name the only file to read in corpus.file"
            )
        return sources

    def _named_in_records(self) -> set[str | None]:
        """The splits that dialogues name: which are missing is known only after all of them."""
        return {self._named(where, record) for where, record, _ in self.records()}

    def _named(self, where: str, record: Mapping[str, Any]) -> str | None:
        """The split that a record names; None if it names none."""
        name = record.get(self._names.split)
        if name is None and self._settings.split is None:
            return None
        if not isinstance(name, str) or name not in self._known:
            raise DataError(
                f"{where}: {self._names.split} {shown(name)} is none of {', '.join(self._known)}: "
                "corpus.messages.splits says which split another name means"
            )
        return self._known[name]


def _turns(record: Mapping[str, Any], settings: Messages, counted: Counter[str]) -> tuple[Turn, ...]:
    """The turns of a record, those of one role joined; with at most one system turn, the first."""
    columns = (settings.turns,) if settings.turns else TURNS
    column = next((name for name in columns if record.get(name) is not None), None)
    if column is None:
        found = ", ".join(map(str, record)) or "nothing"
        raise BadRecord(f": no column {' or '.join(columns)}; found {found}: name it in corpus.messages.turns")
    listed = record[column]
    if not isinstance(listed, list) or not listed:
        raise BadRecord(f": {column} should be a list of turns, found {shown(listed)}")
    turns = [
        read_turn(turn, f", turn {number}", BadRecord, settings.role, settings.content)
        for number, turn in enumerate(listed, start=1)
    ]
    first = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if late := [number for number, turn in enumerate(turns, start=1) if turn.role == "system" and number > first]:
        raise BadRecord(f", turn {late[0]}: a system turn after the first turn of user or assistant: put it first")
    joined = join_turns(turns)
    counted["joined"] += len(turns) - len(joined)
    if first:
        counted["system"] += 1
        if settings.system == "refuse":
            raise BadRecord(", turn 1: a system turn, and corpus.messages.system = refuse: set keep or join")
    return join_system(joined) if first and settings.system == "join" else joined


def _value(record: Mapping[str, Any], named: str | None, usual: str) -> str | None:
    """A text or number of a record's column as text; None where the column has a usual name and is not there."""
    value = record.get(named or usual)
    if value is None and named is None:
        return None
    return text_or_number(value, f": {named or usual}", BadRecord)
