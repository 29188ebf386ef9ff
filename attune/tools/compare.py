"""Compare this run with another one: what changed, what got better or worse, and what nobody can tell.

    python -m attune compare [REV|FOLDER|FILE] [--md] [--all]

compares the working tree with a revision of Git (a commit, branch or tag; default HEAD), with the folder of another
run, or with a record that `attune record` wrote. It shows the changed params, a verdict by rule, the metrics that are
better or worse with the 95 % interval of their paired difference, and apart what cannot be judged. The scores by
example of a revision come from DVC's cache, by the hashes in that revision's dvc.lock. docs/metrics.md has the rule.
The intervals cover the choice of test examples, not another training seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.data.dialogue import dialogue_of
from attune.report import changes as report
from attune.report.changes import Changes, changed_params, holm, page, unjudged_metrics
from attune.report.results import MMLU, TEXT, replies_file, scores_file
from attune.report.tables import DASH, PROBE_COLUMNS, VARIANT_COLUMNS
from attune.runtime.cli import command_parser
from attune.scoring.intervals.bootstrap import DISTANCE
from attune.tools.runs import PREFERENCE, Run, differing, folder, other_run, scorer_of

if TYPE_CHECKING:
    import pandas as pd

SAME_SHARE = 0.99
"""Share of the human replies whose scores are equal if both sides have the same classifier."""


def compare(before: Run, after: Run) -> Changes:
    """What changed from one run to another.

    Raises:
        UserError: a file of one of them cannot be read.
    """
    unjudged: dict[str, list[str]] = defaultdict(list)
    judged, notes = [], list[str]()
    variants = list(dict.fromkeys([*after.keys("variants"), *before.keys("variants")]))
    for variant in variants:
        old, new = before.metrics(variant), after.metrics(variant)
        if not old or not new:
            if old or new:
                unjudged["in one of the two alone"].append(f"variant {variant}")
            continue
        found, reasons = _judge(before, after, variant, notes)
        judged += found
        names = [one.metric for one in found]
        for name, text in unjudged_metrics(old, new, names).items():
            unjudged[_reason(name, reasons)].append(f"{text} ({variant})")
    old, new = before.others(), after.others()
    recorded = [run for run in (before, after) if run.recorded is not None]
    for name in dict.fromkeys([*new, *old]):
        # A record does not have all of them.
        comparable = not recorded or (name in old and name in new)
        if comparable and old.get(name) != new.get(name):
            values = (f"{side[name]:.6g}" if name in side else DASH for side in (old, new))
            unjudged["of the run, not of replies"].append(f"{name} {' → '.join(values)}")
    params = [] if recorded else changed_params(before.params, after.params)
    notes += [f"{run.name} is of `{run.command}`: params are not compared." for run in recorded]
    return Changes(params, holm(judged), dict(unjudged), list(dict.fromkeys(notes)))


def _reason(name: str, reasons: Mapping[str, str]) -> str:
    """Why a metric was not judged."""
    if name.startswith("dist_") or name == "repeated_share":
        return "counts over all replies, without an interval"
    if name in PROBE_COLUMNS:
        return "of probes, whose intervals are in metrics/intervals/"
    if name in reasons:
        return reasons[name]
    scorer = scorer_of(name)
    return reasons.get("bertscore" if name.startswith("bertscore") else scorer) or reasons.get(
        scorer, "no common scores"
    )


def _judge(before: Run, after: Run, variant: str, notes: list[str]) -> tuple[list[report.Change], dict[str, str]]:
    """The judged metrics of a variant, and by scorer the reason why others are not; `notes` gets what was left out."""
    judged: list[report.Change] = []
    reasons: dict[str, str] = {}
    same = _same_examples(before, after, variant)
    for scorer in after.keys("scorers"):
        path = scores_file(scorer, variant).path
        first, second = (run.table(path) for run in (before, after))
        if first is None or second is None:
            lacking = before if first is None else after
            remedy = (
                "the machine that recorded it has them" if lacking.recorded else "`dvc fetch` them, or reproduce it"
            )
            reasons[scorer] = f"{lacking.name} has no scores by example here ({remedy})"
            continue
        differ = differing(before.signature(scorer, variant), after.signature(scorer, variant))
        if hard := [key for key in differ if not key.startswith("bertscore")]:
            reasons[scorer] = f"measured differently ({', '.join(hard)})"
            continue
        silent = [
            run.name for run in (before, after) if run.recorded is not None and not run.signature(scorer, variant)
        ]
        if scorer == MMLU and silent:
            reasons[scorer] = f"{silent[0]} does not say how it was measured"
            continue
        drop = [name for name in first if str(name).startswith("bertscore")] if differ else []
        if differ:
            reasons["bertscore"] = f"measured differently ({', '.join(differ)})"
        if scorer == TEXT and not _same_rejected(before, after, variant):
            drop.append(PREFERENCE)
            reasons[PREFERENCE] = "the rejected replies of the test examples are others"
        equal = None if scorer == MMLU else same
        ids = [key for key in sorted(set(first["id"]) & set(second["id"])) if equal is None or key in equal]
        total = len(set(first["id"]) | set(second["id"]))
        examples = "questions" if scorer == MMLU else "test examples"
        if len(ids) < 2:
            reasons[scorer] = f"no {examples} in common"
            continue
        if len(ids) < total:
            notes.append(f"{len(ids)} of {total} {examples} are in both and equal; the others are not compared.")
        # The tables call the accuracy by the name of the scorer.
        old, new = (
            side.set_index("id").loc[ids].drop(columns=drop, errors="ignore").rename(columns={"acc": MMLU})
            for side in (first, second)
        )
        if scorer != TEXT and _scored_otherwise(old, new):
            reasons[scorer] = "measured by another classifier: the human replies score otherwise"
            continue
        targets = (after.params.get("context") or {}).get("targets", "last")
        # Questions have no dialogues.
        dialogues = ids if scorer == MMLU else [dialogue_of(key, targets) for key in ids]
        judged += report.paired_changes(old, new, variant, dialogues, int(after.params.get("seed", 0)))
    return sorted(judged, key=_place), reasons


def _place(change: report.Change) -> int:
    return list(VARIANT_COLUMNS).index(change.metric.removesuffix(DISTANCE))


def _same_examples(before: Run, after: Run, variant: str) -> set[str] | None:
    """The ids whose context and reference are equal on both sides; None where a side has no replies."""
    wanted = ["id", "context", "reference"]
    sides = [run.table(replies_file(variant).path, wanted) for run in (before, after)]
    if sides[0] is None or sides[1] is None:
        return None
    texts = [
        {
            key: ([(turn["role"], turn["text"]) for turn in context], reference)
            for key, context, reference in side[wanted].itertuples(index=False)
        }
        for side in sides
        if side is not None
    ]
    return {key for key, value in texts[0].items() if texts[1].get(key) == value}


def _same_rejected(before: Run, after: Run, variant: str) -> bool:
    """Whether the examples of both sides have equal rejected replies; True where a side has no replies here."""
    sides = [run.table(replies_file(variant).path) for run in (before, after)]
    if any(side is None or "rejected" not in side for side in sides):
        return True
    old, new = (side.set_index("id")["rejected"] for side in sides if side is not None)
    ids = old.index.intersection(new.index)
    return bool(old[ids].fillna("").eq(new[ids].fillna("")).all())


def _scored_otherwise(old: pd.DataFrame, new: pd.DataFrame) -> bool:
    """Whether the human replies have other scores; signatures do not tell one trained classifier from another.

    Some may differ in their last digits, or in a level, between machines.
    """
    import numpy as np

    names = [name for name in old if "reference_" in str(name) and name in new]
    same = (np.isclose(old[name], new[name], rtol=1e-3, atol=1e-6, equal_nan=True).mean() for name in names)
    return any(share < SAME_SHARE for share in same)


def main(argv: Sequence[str]) -> None:
    """Print the comparison."""
    parser = command_parser("compare", __doc__)
    parser.add_argument(
        "what",
        nargs="?",
        default="HEAD",
        metavar="REV|FOLDER|FILE",
        help="revision, folder of a run, or record to compare with; default HEAD",
    )
    parser.add_argument("--md", action="store_true", help="as Markdown, for a pull request")
    parser.add_argument("--all", action="store_true", help="leave nothing out, also what is within noise")
    arguments = parser.parse_args(argv)
    here = folder(Path(), "the working tree")
    before = other_run(arguments.what, here)
    print(page(compare(before, here), before.name, arguments.md, arguments.all))
