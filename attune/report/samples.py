"""`reports/samples.md`: ten contexts with the replies of all variants side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attune.config.schema import Params
from attune.data.keyed import uniform
from attune.report.read import Results
from attune.report.tables import escape

SHOWN = 10
TRANSCRIPTS = 3
MACHINE = "Written by a machine"
"""Heading of every reply of a model, on every page."""


def samples(results: Results, params: Params) -> str:
    """Contexts with the human reference and the replies of all variants, as Markdown."""
    seed = params.seed
    by_id = {variant: {row["id"]: row for row in rows} for variant, rows in results.replies.items()}
    first = next(iter(by_id.values()))
    shared = {key: row["label"] for key, row in first.items() if all(key in rows for rows in by_id.values())}
    parts = [
        f"# Replies side by side\n\nReplies headed {MACHINE!r} come from language models, unchecked: some "
        "are wrong or hurtful, and none is counsel.\nThe contexts are a seeded choice of the answered examples, spread "
        "over the labels."
    ]
    for number, key in enumerate(choose(shared, seed), start=1):
        row = first[key]
        turns = "\n>\n".join(quote(turn["text"], f"**{turn['role']}:** ") for turn in row["context"])
        replies = {f"{MACHINE}: {variant}": rows[key]["reply"] for variant, rows in by_id.items()}
        texts = {"Human reference": row["reference"], **replies}
        parts.append(f"## {number}. {escape(row['label'])} ({escape(key)})\n\n{turns}")
        parts += [f"**{escape(title)}**\n\n{quote(text)}" for title, text in texts.items()]
    parts += transcripts(results.conversations, seed, params.converse.seeker == "endpoint")
    return "\n\n".join(parts) + "\n"


def transcripts(conversations: Sequence[Mapping[str, Any]], seed: int, played: bool) -> list[str]:
    """A heading and `TRANSCRIPTS` conversations as Markdown; nothing if there are none.

    Args:
        conversations: rows of id, label, turns and states.
        seed: of the choice.
        played: whether a language model plays the people, whose messages are then machine-written, too.
    """
    by_id = {row["id"]: row for row in conversations}
    chosen = choose({key: row["label"] for key, row in by_id.items()}, seed, TRANSCRIPTS)
    if played:
        title, told = "played", "A language model plays the people, from their second message on."
        names = {"user": f"{MACHINE}, too", "assistant": MACHINE}
    else:
        title, told = "scripted", "The people are scripts; what they say next depends by rules on the reply."
        names = {"user": "somebody", "assistant": MACHINE}
    parts = [f"## Conversations with {title} people\n\n{told}"]
    for key in chosen:
        states = ", ".join(map(str, by_id[key]["states"]))
        turns = [quote(turn["text"], f"**{names[turn['role']]}:** ") for turn in by_id[key]["turns"]]
        parts.append(f"### {escape(key)} (distress {states})\n\n" + "\n>\n".join(turns))
    return parts if chosen else []


def choose(labels: Mapping[str, str], seed: int, shown: int = SHOWN) -> list[str]:
    """Up to `shown` ids, spread over the labels: the first of every label comes before the second of any.

    Within a label the order is by a hash of seed and id, so that the choice depends on the ids alone.

    Args:
        labels: id to label.
        seed: of the run.
        shown: number of ids.

    Returns:
        Ids in the order of their labels.
    """
    counts: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for key in _shuffled(labels, seed):
        ranks[key] = counts[labels[key]] = counts.get(labels[key], 0) + 1
    chosen = sorted(_shuffled(labels, seed), key=lambda key: ranks[key])[:shown]
    return sorted(chosen, key=lambda key: (labels[key], key))


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: (uniform(2**64, seed, "sample", name), name))


def quote(text: str, prefix: str = "") -> str:
    """Any text as a Markdown block quote that keeps its line breaks, after the Markdown `prefix`."""
    lines = [escape(line.strip()) for line in text.splitlines() if line.strip()]
    return f"> {prefix}" + "\\\n> ".join(lines or ["*(empty)*"])
