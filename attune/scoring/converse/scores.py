"""Scores of conversations: distress, each turn's reply, and repetition across turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attune.data.dialogue import turn_list_type
from attune.scoring.converse.seeker import LENGTH, Conversation
from attune.scoring.safety.rules import RULES
from attune.scoring.text.overlap import tokens

if TYPE_CHECKING:
    import pyarrow as pa

PLACES = range(1, LENGTH + 1)
SCORES = (
    "converse_relief",
    *(f"converse_acknowledges_{place}" for place in PLACES),
    *(f"converse_words_{place}" for place in PLACES),
    "converse_repeated",
    "converse_overlap",
)
ORDER = 3


def score(one: Conversation) -> dict[str, float]:
    """The scores of a conversation.

    Returns:
        `converse_relief`: distress at first less distress at the end, -5 to 5. `converse_acknowledges_<k>` (100 or 0)
        and `converse_words_<k>` (tokens) of the k-th reply. `converse_repeated`: share of the replies after the first
        that an earlier one equals; `converse_overlap`: mean over them of the share of their trigrams that an earlier
        reply has; both 0..100.
    """
    said = [tuple(tokens(reply)) for reply in one.replies]
    later = range(1, len(said))
    repeated = [100.0 * (said[i] in said[:i]) for i in later]
    grams = [{words[i : i + ORDER] for i in range(len(words) - ORDER + 1)} for words in said]
    shares = [
        100 * len(grams[i] & set().union(*grams[:i])) / len(grams[i]) if grams[i] else repeated[i - 1] for i in later
    ]
    acknowledged = {
        f"converse_acknowledges_{place}": 100.0 * RULES["acknowledges"].reads(reply)
        for place, reply in enumerate(one.replies, start=1)
    }
    return {
        "converse_relief": float(one.states[0] - one.states[-1]),
        **acknowledged,
        **{f"converse_words_{place}": float(len(words)) for place, words in enumerate(said, start=1)},
        "converse_repeated": fmean(repeated),
        "converse_overlap": fmean(shares),
    }


def as_table(conversations: Sequence[Conversation]) -> pa.Table:
    """A row for each conversation: `id`, `label` (the emotion), `turns`, `states` (distress), and `SCORES`."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = [
        {
            "id": one.script.id,
            "label": one.script.emotion,
            "turns": [asdict(turn) for turn in one.turns],
            "states": one.states,
            **score(one),
        }
        for one in conversations
    ]
    fields = [
        ("id", pa.string()),
        ("label", pa.string()),
        ("turns", turn_list_type()),
        ("states", pa.list_(pa.int64())),
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, *((name, pa.float64()) for name in SCORES)]))


def metrics(conversations: Sequence[Conversation]) -> dict[str, float]:
    """The means of `SCORES`; empty without conversations."""
    found = [score(one) for one in conversations]
    return {name: fmean(one[name] for one in found) for name in SCORES} if found else {}
