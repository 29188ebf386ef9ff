"""What the classifiers of assistant turns do alike: labels of human replies, and rows of probabilities for replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.data.dialogue import Turn, to_turns
from attune.runtime.distributed import shared_by_ranks

if TYPE_CHECKING:
    import pandas as pd

    from attune.config.schema import Hardware
    from attune.data.dialogue import Example

Rows = list[list[float]]
# From folder, contexts, replies and hardware to (N, L) values of the labels.
Probabilities = Callable[[Path, Sequence[Sequence[Turn]], Sequence[str], "Hardware"], Rows]


def reference_columns(
    probabilities: Probabilities, labels: Sequence[str], folder: Path, examples: Sequence[Example], hardware: Hardware
) -> dict[str, list[Any]]:
    """Column `id` and a column of (N,) values for each of L labels, of the human replies to the examples."""
    contexts, replies = [example.context for example in examples], [example.target for example in examples]
    rows = probabilities(folder, contexts, replies, hardware)
    columns = {label: [row[i] for row in rows] for i, label in enumerate(labels)}
    return {"id": [example.id for example in examples], **columns}


def reference_rows(labels: Sequence[str], references: pd.DataFrame) -> Rows:
    """The (N, L) values that `reference_columns` has in columns."""
    rows: Rows = references[list(labels)].to_numpy().tolist()
    return rows


def reply_rows(probabilities: Probabilities, folder: Path, replies: pd.DataFrame, hardware: Hardware) -> Rows:
    """The (N, L) values of the labels of replies, shared between ranks."""

    def score_rows(indices: list[int]) -> dict[str, Rows]:
        """The probabilities of the labels for the replies with these row numbers."""
        part = replies.iloc[indices]
        contexts = [to_turns(context) for context in part["context"]]
        return {"rows": probabilities(folder, contexts, part["reply"].tolist(), hardware)}

    return shared_by_ranks(len(replies), score_rows)["rows"]
