"""What a reviewer of a change reads: the metrics that moved, and ten replies before and after, as one comment.

    python -m attune review main > comment.md

compares the working tree to REV (a commit, branch or tag). Changes of metrics that lie within the new value's interval
are marked. Replies are those of the last variant of params.yaml, or of --variant; those of REV come from DVC's cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params
from attune.report.results import REPLY_COLUMNS, read_replies, replies_file
from attune.report.samples import MACHINE, choose, quote
from attune.report.tables import escape
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError
from attune.tools import compare

Replies = Mapping[str, dict[str, Any]]


def replies_at(revision: str, variant: str) -> Replies | None:
    """The variant's replies at a revision by example; None where it has none, or DVC's cache does not hold them.

    Raises:
        UserError: Git does not know the revision.
    """
    import pyarrow.parquet as pq
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    try:
        with DVCFileSystem(rev=revision).open(str(replies_file(variant).path), "rb") as file:
            return {row["id"]: row for row in pq.read_table(file, columns=REPLY_COLUMNS).to_pylist()}
    except RevError as error:
        raise UserError(f"{revision} is no revision: {error}") from None
    except (FileNotFoundError, DvcException):
        return None


def comment(revision: str, name: str, variant: str, params: Params) -> str:
    """The whole comment, as Markdown; `name` is what the page calls `revision`.

    Raises:
        UserError: `revision` or `variant` is not there, or the replies of the working tree are not.
    """
    named(params.variants, variant, "variants")
    after = {row["id"]: row for row in read_replies(variant)}
    before = replies_at(revision, variant)
    found = compare.compare(revision)
    return "\n\n".join([
        f"## Metrics against {escape(name)}",
        compare.page(found, escape(name), markdown=True, everything=True),
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
        said = quote(after[key]["context"][-1]["text"], "**user:** ")
        replies = (quote(side[key]["reply"], f"**{name}:** ") for name, side in (("before", before), ("after", after)))
        parts.append("\n\n".join([f"{escape(changed[key].strip())} ({escape(key)})", said, *replies]))
    return parts


def main(argv: Sequence[str]) -> None:
    """Print the comment."""
    parser = command_parser("review", __doc__)
    parser.add_argument("revision", metavar="REV", help="what to compare to")
    parser.add_argument("--name", help="what to call REV; as it is given")
    parser.add_argument("--variant", help="whose replies are shown; the last one of params.yaml")
    arguments = parser.parse_args(argv)
    params = load()
    name, variant = arguments.name or arguments.revision, arguments.variant or list(params.variants)[-1]
    print(comment(arguments.revision, name, variant, params), end="")
