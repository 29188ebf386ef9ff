"""The comment on a pull request: changed params, a verdict, what is better or worse, and ten replies before and after.

    python -m attune review main > comment.md

compares the working tree with REV (a commit, branch or tag), as `attune compare` does. --plots adds a link to them.
Replies are those of the last variant of params.yaml that has a model, or of --variant; the replies of REV come from
DVC's cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params
from attune.report.changes import page
from attune.report.results import read_probes, read_replies, replies_file
from attune.report.samples import MACHINE, choose, quote
from attune.report.summary import fallen
from attune.report.tables import escape
from attune.runtime.cli import command_parser
from attune.tools.compare import compare
from attune.tools.runs import Run, folder
from attune.tools.runs import revision as at

Replies = Mapping[str, dict[str, Any]]


def replies_at(revision: Run, variant: str) -> Replies | None:
    """The variant's replies at a revision, by example; None if there are none in DVC's cache.

    Raises:
        UserError: they cannot be read.
    """
    table = revision.table(replies_file(variant).path, ["id", "context", "reply"])
    if table is None:
        return None
    return {
        key: {"reply": reply, "context": list(context)}
        for key, reply, context in zip(table["id"], table["reply"], table["context"], strict=True)
    }


def comment(revision: str, name: str, variant: str, params: Params, plots: str | None = None) -> str:
    """The comment as Markdown; it calls `revision` by `name` and links to `plots`, a path or an address.

    Raises:
        UserError: there is no such `revision` or `variant`, or the working tree has no replies of it.
    """
    named(params.variants, variant, "variants")
    after = {row["id"]: row for row in read_replies(variant)}
    old = at(revision)
    before = replies_at(old, variant)
    changed = compare(old, folder(Path(), "the working tree"))
    ends = {name: read_probes(params, name)[1] for name in params.probed}
    safety = ["## Safety", fallen(ends, params.evaluate.reference)] if params.probed else []
    return "\n\n".join([
        *safety,
        f"## Changes against {escape(name)}",
        page(changed, name, markdown=True),
        *([f"[Plots of both]({plots})"] if plots else []),
        f"## Replies of {escape(variant)} against {escape(name)}",
        *_samples(before, after, params.seed),
    ]) + "\n"  # fmt: skip


def _samples(before: Replies | None, after: Replies, seed: int) -> Sequence[str]:
    if before is None:
        return ["The replies of that revision are not in DVC's cache here: `dvc pull` them, or reproduce it."]
    both = [key for key, row in after.items() if key in before and before[key]["context"] == row["context"]]
    changed = {key: after[key]["label"] for key in both if before[key]["reply"] != after[key]["reply"]}
    count = f"{len(changed)} of {len(both)} replies to the same context differ."
    if not changed:
        return [count]
    parts = [f"{count} {MACHINE}, unchecked: some are wrong or hurtful, and none is counsel."]
    for key in choose(changed, seed):
        prompt = quote(after[key]["context"][-1]["text"], "**user:** ")
        replies = (quote(side[key]["reply"], f"**{name}:** ") for name, side in (("before", before), ("after", after)))
        parts.append("\n\n".join([f"{escape(changed[key].strip())} ({escape(key)})", prompt, *replies]))
    return parts


def main(argv: Sequence[str]) -> None:
    """Print the comment."""
    parser = command_parser("review", __doc__)
    parser.add_argument("revision", metavar="REV", help="revision to compare with")
    parser.add_argument("--name", help="name of REV in the comment; default: REV")
    parser.add_argument("--plots", metavar="LINK", help="path or address of the plots of both, to link to")
    parser.add_argument("--variant", help="variant whose replies are shown; default: the last that has a model")
    arguments = parser.parse_args(argv)
    params = load()
    name, variant = arguments.name or arguments.revision, arguments.variant or params.last_model
    print(comment(arguments.revision, name, variant, params, arguments.plots), end="")
