"""TODO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attune.data.keyed import uniform
from attune.report.read import Results
from attune.report.tables import (
    escape,
)

SHOWN = 10
MACHINE = "Written by a machine"
"""What stands over every reply of a model, wherever one is shown."""


def samples(results: Results, seed: int) -> str:
    """Test contexts with the human reference and the replies of all variants, as Markdown."""
    by_id = {key: {row["id"]: row for row in rows} for key, rows in results.replies.items()}
    first = next(iter(by_id.values()))
    chosen = choose({name: row["label"] for name, row in first.items() if all(name in o for o in by_id.values())}, seed)
    parts = [
        f"# Replies side by side\n\nReplies headed {MACHINE!r} come from language models, unchecked: some "
        "are wrong or hurtful, and none is counsel.\nThe contexts are a seeded choice of the test split, spread over "
        "the labels."
    ]
    for number, name in enumerate(chosen, start=1):
        row = first[name]
        replies = {f"{MACHINE}: {key}": rows[name]["reply"] for key, rows in by_id.items()}
        turns = "\n>\n".join(quote(turn["text"], f"**{turn['role']}:** ") for turn in row["context"])
        texts = {"Human reference": row["reference"], **replies}
        parts.append(f"## {number}. {escape(row['label'])} ({escape(name)})\n\n{turns}")
        parts += [f"**{escape(title)}**\n\n{quote(text)}" for title, text in texts.items()]
    return "\n\n".join(parts) + "\n"


def choose(labels: Mapping[str, str], seed: int) -> list[str]:
    """Up to ten ids: one of every label before a second of any, else by a hash of seed and id; in order of the labels.

    Args:
        labels: id to label.
        seed: of the run.
    """
    taken: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for name in _shuffled(labels, seed):
        ranks[name] = taken[labels[name]] = taken.get(labels[name], 0) + 1
    chosen = sorted(_shuffled(labels, seed), key=lambda name: ranks[name])[:SHOWN]
    return sorted(chosen, key=lambda name: (labels[name], name))


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: (uniform(2**64, seed, "sample", name), name))


def quote(text: str, before: str = "") -> str:
    """Any text as a Markdown block quote, with its line breaks; `before` is Markdown that leads it."""
    lines = [escape(line.strip()) for line in text.splitlines() if line.strip()]
    return f"> {before}" + "\\\n> ".join(lines or ["*(empty)*"])
