"""`reports/samples.html`: every answered example with the replies of all variants, to search and sort in a browser.

The file loads nothing. The examples are in it as JSON, and its script, the only one that the page's content security
policy allows, inserts them as text nodes, so that no reply can become markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from attune.report.render import render, script
from attune.scoring.text.overlap import tokens

SCORES = {
    "level_er": ("ER", 0),
    "level_ip": ("IP", 0),
    "level_ex": ("EX", 0),
    "rouge_l": ("ROUGE-L", 1),
    "bertscore_f1": ("F-BERT", 1),
}
"""Scores by example that are shown: heading and decimals."""


def page(
    replies: Mapping[str, Sequence[dict[str, Any]]],
    scores: Mapping[str, Mapping[str, dict[str, float]]],
    title: str,
    lead: str,
    machine: str,
) -> str:
    """The page as HTML.

    Args:
        replies: variant to the rows of its replies; an example that a variant lacks is left out.
        scores: variant to the scores of each reply by its id, those of `SCORES` that exist.
        title: of the page.
        lead: what was run.
        machine: heading of a reply that a model wrote.
    """
    data = json.dumps(rows(replies, scores) | {"machine": machine}, ensure_ascii=False, separators=(",", ":"))
    source, source_hash = script("samples.js")
    return render(
        "samples.html",
        title=title,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src {source_hash}",
        lead=lead,
        machine=machine,
        # Inside a script element only "<" could end it.
        data=data.replace("<", "\\u003c"),
        script=source,
    )


def rows(
    replies: Mapping[str, Sequence[dict[str, Any]]], scores: Mapping[str, Mapping[str, dict[str, float]]]
) -> dict[str, Any]:
    """What the script reads: variants, headings of the scores, and the examples in the order of the first variant."""
    by_id = {variant: {row["id"]: row for row in variant_rows} for variant, variant_rows in replies.items()}
    first, *others = by_id.values()
    shared = {key: row for key, row in first.items() if all(key in other for other in others)}
    examples = []
    for key, row in shared.items():
        texts = [variant_rows[key]["reply"] for variant_rows in by_id.values()]
        numbers = [scores.get(variant, {}).get(key, {}) for variant in by_id]
        examples.append({
            "id": key, "label": row["label"], "context": [[turn["role"], turn["text"]] for turn in row["context"]],
            "reference": row["reference"], "replies": texts, "differ": round(difference(texts), 3),
            "scores": [[values.get(name) for name in SCORES] for values in numbers],
        })  # fmt: skip
    return {"variants": list(by_id), "scores": list(SCORES.values()), "rows": examples}


def difference(texts: Sequence[str]) -> float:
    """How far replies are from each other, 0 to 1: the Jaccard distance of their words, mean over pairs of replies."""
    words = [set(tokens(text)) for text in texts]
    distances = [1 - len(a & b) / len(a | b) if a | b else 0.0 for a, b in combinations(words, 2)]
    return fmean(distances) if distances else 0.0
