"""How far each metric agrees with people: the numbers of `metrics/validity.json` on the pages.

`python -m attune validity` writes the file. It is measured once, on replies that people have rated, and not by a run,
so the summary says where it was measured with another encoder or other classifiers than those of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from attune.report.results import METRICS, Artifact, read_object
from attune.report.tables import DASH, VARIANT_COLUMNS, direction, markdown_table

VALIDITY = METRICS / "validity.json"
MEAN = "mean"
"""Name of the mean of all scales."""
Validity = Mapping[str, Any]

SAME = {
    ("bertscore_",): ("bertscore_encoder_sha256", "bertscore_layer"),
    ("level_", "diff_"): ("epitome_classifiers", "epitome_encoder_sha256"),
    ("dbt_",): ("dbt_classifier", "dbt_encoder_sha256"),
    ("behaviour_",): ("behaviour_classifier", "behaviour_encoder_sha256"),
}
"""Prefixes of metrics, to the keys of the signature that a run must share for these to be what was measured."""
OTHERWISE = "°"
"""Marks a correlation that was measured with another encoder or other classifiers than the run's."""


def read_validity(path: Path = VALIDITY) -> Validity:
    """The content of the file; empty where there is none.

    Raises:
        UserError: it is no JSON object.
    """
    return read_object(Artifact(path, "validity")) if path.is_file() else {}


def scales(validity: Validity) -> list[str]:
    """The scales that people rated on, and the mean of them where there are several."""
    return list(validity["ceiling"])


def leading(validity: Validity) -> str:
    """The scale whose correlation stands for a metric: the mean of the scales, or the only one."""
    return MEAN if MEAN in validity["ceiling"] else scales(validity)[0]


def better(metric: str) -> int:
    """1 if a higher score is better, -1 if a lower one is; a metric without a better end counts as higher."""
    sides = {"dbt_diff": -1, "behaviour_non_adherent": -1} | {f"diff_{one}": -1 for one in ("er", "ip", "ex")}
    heading = VARIANT_COLUMNS.get(metric, ("", 0))[0]
    return direction(heading) or sides.get(metric, 1)


def correlations(validity: Validity, signature: Mapping[str, object]) -> dict[str, str]:
    """Metric to its correlation with people's ratings, as the headings of columns show it.

    Args:
        validity: of `read_validity`.
        signature: of the run.
    """
    if not validity:
        return {}
    scale = leading(validity)
    marked = tuple(chain.from_iterable(starts for starts in SAME if differing(validity, signature, starts)))
    found = {name: metric["rho"][scale]["value"] for name, metric in validity["metrics"].items()}
    return {
        name: f"rho {value:+.2f}{OTHERWISE if name.startswith(marked) else ''}"
        for name, value in found.items()
        if value is not None
    }


def differing(validity: Validity, signature: Mapping[str, object], starts: tuple[str, ...]) -> list[str]:
    """The keys of `SAME` for metrics that begin with `starts` in which a run differs from what was measured."""
    measured = validity["signature"]
    return [name for name in SAME[starts] if name in signature and signature[name] != measured.get(name)]


def explanation(validity: Validity, signature: Mapping[str, object]) -> str:
    """What rho beside a heading is, for the summary; empty without the file.

    Args:
        validity: of `read_validity`.
        signature: of the run.
    """
    if not validity:
        return ""
    scale, about = leading(validity), validity["ratings"]
    top = validity["ceiling"][scale]
    text = (
        f"rho: agreement of the metric with people, Spearman's rank correlation with {about['source']}'s ratings of "
        f"{about['replies']} replies ({scale}); of ↓ metrics a negative one is agreement."
    )
    if top["value"] is not None:
        text += f" One rater against the others: {top['value']:+.2f}."
    if differ := [name for starts in SAME for name in differing(validity, signature, starts)]:
        text += f" {OTHERWISE}: measured with others than this run's ({', '.join(differ)})."
    return text + " `docs/metrics.md` has intervals."


def table(validity: Validity) -> str:
    """All metrics with their correlations, pairwise agreement and order of systems, as a Markdown table and notes."""
    names, lead = scales(validity), leading(validity)
    heads = ["metric", "n", *(name for name in names if name != lead), f"{lead} (95 % interval)", "pairs %", "systems"]
    rows = [heads, ["*one rater, the ceiling*", *_ceiling(validity, names, lead), DASH, DASH]]
    for metric, found in validity["metrics"].items():
        rho = found["rho"]
        rows.append([
            f"{metric}{' ↓' if better(metric) < 0 else ''}", str(found["n"]),
            *(_number(rho[name]["value"]) for name in names if name != lead), _bounded(rho[lead]),
            _bounded(found["pairwise"], "{:.0f}"), found["systems_agree"] or DASH,
        ])  # fmt: skip
    return "\n".join([markdown_table(rows), "", *_notes(validity)])


def _ceiling(validity: Validity, names: list[str], lead: str) -> list[str]:
    top = validity["ceiling"]
    return [f"{top[lead]['n']}", *(_number(top[name]["value"]) for name in names if name != lead), _bounded(top[lead])]


def _notes(validity: Validity) -> list[str]:
    about = validity["ratings"]
    notes = [
        f"{about['replies']} replies to {about['dialogues']} dialogues, {about['ratings']:,} ratings "
        f"({about['source']}); intervals by {validity['bootstrap']['resamples']} resamples of the dialogues."
    ]
    if order := [f"{name} {values['rating']:.1f}" for name, values in validity["systems"].items()]:
        notes.append(f"Systems by people's mean rating: {', '.join(order)}.")
    if human := validity.get("human_replies"):
        notes.append(
            f"Apart, and in no row above: {human['replies']} rated replies that are the reference itself, mean rating "
            f"{human['rating']:.1f}."
        )
    return [" ".join(notes), *(f"- {note}" for note in validity["left_out"])]


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:+.2f}"


def _bounded(found: Mapping[str, float | None], form: str = "{:+.2f}") -> str:
    if found["value"] is None:
        return DASH
    value, low, high = (form.format(found[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
