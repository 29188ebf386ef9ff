"""Stage `evaluate@<variant>`: score the replies that stage `generate@<variant>` wrote. Loads no model.

    python -m stages.evaluate <variant>

reads `data/replies/<variant>.parquet` and writes `metrics/<variant>.json` (flat, 4 digits) and
`metrics/<variant>.signature.json` (what explains the numbers).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import UserError, reported
from stages.files import write_json
from stages.scoring import overlap

if TYPE_CHECKING:
    import pandas as pd

REPLIES = Path("data/replies")
METRICS = Path("metrics")
COLUMNS = ("id", "label", "context", "reference", "reply", "rejected", "reference_logp", "rejected_logp")
DIGITS = 4


class RepliesError(UserError):
    """A file of replies is not what this stage can score."""


def evaluate(replies: pd.DataFrame) -> tuple[dict[str, float], dict[str, str]]:
    """Score the replies of one variant.

    Args:
        replies: one row per example, as `read` returns it: `id`, `label`, `context`, `reference`, `reply`, `rejected`
            (null where the corpus has no pair), `reference_logp` and `rejected_logp` (mean nats per token, null
            without a rejected reply).

    Returns:
        The metrics (unrounded; `docs/metrics.md` has a card for each) and their signature. `preference_accuracy` is
        left out when no example has a rejected reply.

    Raises:
        ValueError: no rows, or a log-probability is NaN or infinite beside a rejected reply.
    """
    predictions, references = replies["reply"].tolist(), replies["reference"].tolist()
    metrics = overlap.overlap(predictions, references)
    pairs = replies[replies["rejected"].notna()]
    if len(pairs):
        logps = pairs["reference_logp"].tolist(), pairs["rejected_logp"].tolist()
        metrics["preference_accuracy"] = overlap.preference_accuracy(*logps)
    signature = overlap.signature(predictions, references) | {
        "preference_accuracy": "mean log-probability per token of reference > rejected; ties count half",
        "preference_examples": str(len(pairs)),
    }
    return metrics, signature


def read(path: Path) -> pd.DataFrame:
    """Read and check a file of replies.

    Raises:
        RepliesError: the file is missing or no parquet, a column is missing, there are no rows, or a value is null or
            of another kind than its column; names the file, the column and the row.
    """
    import pandas as pd
    from pyarrow import ArrowInvalid

    try:
        replies = pd.read_parquet(path)
    except FileNotFoundError:
        raise RepliesError(f"{path} is missing: run `dvc repro generate@{path.stem}`") from None
    except ArrowInvalid as error:
        raise RepliesError(f"{path} is no valid parquet file: {error}") from None
    # The first one: those after a missing column could not be looked for.
    problem = next(_problems(replies), None)
    if problem is not None:
        raise RepliesError(f"{path}: {problem}")
    return replies


def _problems(replies: pd.DataFrame) -> Iterator[str]:
    """What is wrong with `replies`, a sentence each."""
    for column in COLUMNS:
        if column not in replies:
            yield f"column {column} is missing"
    if not len(replies):
        yield "there are no rows"
    paired = replies[replies["rejected"].notna()]
    for column in ("reply", "reference"):
        yield from _other_rows(replies, column, _is_text, "a text")
    yield from _other_rows(paired, "rejected", _is_text, "a text")
    for column in ("reference_logp", "rejected_logp"):
        yield from _other_rows(paired, column, _is_finite, "a finite number")


def _other_rows(replies: pd.DataFrame, column: str, fits: Callable[[object], bool], wanted: str) -> Iterator[str]:
    for row, name, value in zip(replies.index, replies["id"], replies[column].tolist(), strict=True):
        if not fits(value):
            yield f"column {column}, row {row} (id {name}): {value!r} is not {wanted}"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def main(arguments: list[str] | None = None) -> None:
    """Evaluate the variant that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description="Score the replies of a variant.")
    parser.add_argument("variant", help=f"its replies are in {REPLIES}/<variant>.parquet")
    variant = parser.parse_args(arguments).variant
    metrics, signature = evaluate(read(REPLIES / f"{variant}.parquet"))
    write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in metrics.items()})
    write_json(METRICS / f"{variant}.signature.json", signature)


if __name__ == "__main__":
    with reported():
        main()
