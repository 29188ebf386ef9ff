"""Preference pairs made elsewhere: rule `file`.

The rule: the pairs are the rows of a file. They are the same in every epoch, or those of the epoch in a column `epoch`.
A row with equal chosen and rejected, or with an empty text, is left out and counted. A prompt loses an opening turn of
the assistant, which some chat templates refuse.

Held-out pairs, which nothing trains on, are the part `test` of a folder or dataset, and pairs with the same prompt as
one of them are left out of training. Without that part they are a share of the prompts (`pairs.file.held_out`), by a
hash of their words: all pairs of a prompt are on the same side, whatever the order, and more rows move none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from attune.config.schema import Pairs
from attune.data.dialogue import context_key, from_first_user
from attune.data.keyed import random_subset, uniform
from attune.data.pair import Pair
from attune.pairs.preference_files import read_parts
from attune.pairs.preference_formats import read_pair
from attune.runtime.errors import DataError
from attune.runtime.records import Record

# Steps of a share.
STEPS = 1_000_000


@dataclass(frozen=True)
class Preferences:
    """The pairs of a file: those to train on, the held-out ones, and what was left out of the former, by reason.

    An epoch of 0 is every epoch.
    """

    train: list[Pair]
    held_out: list[Pair]
    left_out: Counter[str]

    @property
    def epochs(self) -> list[int]:
        """The epochs that a column names; empty if the pairs are the same in every epoch."""
        return sorted({pair.epoch for pair in self.train} - {0})

    def of_epoch(self, epoch: int, limit: int | None, seed: int) -> list[Pair]:
        """The pairs to train on in an epoch, from 1, in order of their ids; at most `limit` random ones."""
        pairs = [replace(pair, epoch=epoch) for pair in self.train if pair.epoch in (0, epoch)]
        return sorted(random_subset(pairs, limit, seed), key=lambda pair: pair.id)


def read_preferences(settings: Pairs) -> Preferences:
    """Read the file, folder or dataset that the params name.

    Raises:
        DataError: it cannot be read, a row fits no format, ids repeat, or some rows have an epoch and others none.
    """
    train_rows, test_rows = read_parts(settings)
    train, left_out = usable(train_rows)
    if test_rows is None:
        held_out = [pair for pair in train if is_held_out(pair, settings.file.held_out)]
    else:
        held_out, unusable = usable(test_rows)
        left_out["of_test"] = unusable["equal"] + unusable["empty"]
    prompts = {context_key(pair.prompt) for pair in held_out}
    kept = [pair for pair in train if context_key(pair.prompt) not in prompts]
    left_out["held_out"] = len(train) - len(kept)
    return Preferences(kept, held_out, left_out)


def usable(rows: Iterable[Record]) -> tuple[list[Pair], Counter[str]]:
    """The pairs of the rows, and how many rows have `equal` replies, an `empty` text or an `opening_turn` too many.

    Raises:
        DataError: as `read_preferences`.
    """
    pairs: list[Pair] = []
    left_out, places = Counter[str](equal=0, empty=0, opening_turn=0), dict[tuple[int, str], str]()
    for number, (where, row) in enumerate(rows, start=1):
        pair = read_pair(row, where, f"row {number:08}")
        if (other := places.setdefault((pair.epoch, pair.id), where)) != where:
            raise DataError(f"{where}: id {pair.id!r} is also that of {other}: ids are unique in an epoch")
        if bool(pair.epoch) is not bool(next(iter(places))[0]):
            raise DataError(f"{where}: a column epoch in some rows only: give all rows an epoch, or none")
        prompt = from_first_user(pair.prompt)
        left_out["opening_turn"] += prompt != pair.prompt
        pair = replace(pair, prompt=prompt)
        if pair.chosen.split() == pair.rejected.split():
            left_out["equal"] += 1
        elif not all([pair.chosen, pair.rejected, *(turn.text for turn in pair.prompt)]):
            left_out["empty"] += 1
        else:
            pairs.append(pair)
    return pairs, left_out


def is_held_out(pair: Pair, share: float) -> bool:
    """Whether the prompt is in the held-out share, 0 to 1."""
    return uniform(STEPS, "held-out prompt", context_key(pair.prompt)) < round(share * STEPS)
