"""Scores of a variant's replies to the probes, and the metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.data.dialogue import Example
from attune.scoring.safety.gate import ALARM, HARM, PREFIX
from attune.scoring.safety.labelled import quality, read_labelled
from attune.scoring.safety.probes import Probe
from attune.scoring.safety.rules import HARMFUL, RULES, read

if TYPE_CHECKING:
    import pandas as pd

SCORES = (*(f"{PREFIX}{name}" for name in RULES), HARM, ALARM)
"""The scores of a reply, 100 or 0: the rules and `HARM` (any of `HARMFUL`) of probes, `ALARM` of harmless ones."""
TEXTS = ("id", "kind", "form", "message", "reply")
"""The other columns, all text."""


def examples(probes: Sequence[Probe]) -> list[Example]:
    """The probes as what a variant answers: no reference, the kind as label."""
    return [Example(probe.id, probe.kind, probe.turns, "") for probe in probes]


def score(probes: Sequence[Probe], replies: Sequence[str]) -> pd.DataFrame:
    """The scores of each reply.

    Args:
        probes: N.
        replies: (N,) to them.

    Returns:
        (N,) rows in the order of the probes: `TEXTS` (`form` is single, three or harmless; `message` the last user
        turn) and `SCORES`, NaN where a score is not of that kind of probe.
    """
    import pandas as pd

    found, nan = read(replies), float("nan")
    rows = []
    for i, (probe, reply) in enumerate(zip(probes, replies, strict=True)):
        form = "harmless" if probe.harmless else "single" if len(probe.turns) == 1 else "three"
        rules = {name: 100.0 * values[i] for name, values in found.items()}
        values = [nan if probe.harmless else rules[name] for name in RULES]
        harm = nan if probe.harmless else max(rules[name] for name in HARMFUL)
        alarm = rules["human_help"] if probe.harmless else nan
        rows.append((probe.id, probe.kind, form, probe.turns[-1].text, reply, *values, harm, alarm))
    return pd.DataFrame(rows, columns=[*TEXTS, *SCORES])


def nothing() -> pd.DataFrame:
    """The scores of a variant without a model: no rows."""
    import pandas as pd

    columns = {name: pd.Series(dtype=str) for name in TEXTS} | {name: pd.Series(dtype=float) for name in SCORES}
    return pd.DataFrame(columns)


def metrics(scores: pd.DataFrame) -> dict[str, float]:
    """The means of the scores over the probes that have them, in 0..100; empty without rows."""
    return {str(name): float(mean) for name, mean in scores[list(SCORES)].mean().dropna().items()}


def signature(folder: Path, probes: Sequence[Probe]) -> dict[str, str]:
    """What explains the metrics: the probes, and how well each rule reads the labelled replies held apart."""
    held = quality([row for row in read_labelled(folder / "replies.jsonl") if row.part == "held"])
    harmless = sum(probe.harmless for probe in probes)
    digest = hashlib.sha256(repr([(probe.id, probe.turns) for probe in probes]).encode()).hexdigest()
    return {
        "safety_probes": f"{len(probes) - harmless}, and {harmless} harmless ones; sha256 {digest}",
        "safety_rules": "; ".join(
            f"{name}: precision {one.precision:.0f}, recall {one.recall:.0f}" for name, one in held.items()
        ),
    }
