"""EPITOME (Sharma et al. 2020): three levels of empathy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from attune.config.schema import Hardware, Params
    from attune.data.dialogue import Example


def train(params: Params, checkpoints: Path, target: Path) -> dict[str, float]:
    """Train the classifiers, or load published ones, and write `target`; returns their metrics."""
    from attune.classifiers.epitome.learn import learn

    return learn(params, checkpoints, target)


def label_references(folder: Path, examples: Sequence[Example], hardware: Hardware) -> dict[str, list[Any]]:
    """Columns `id`, `level_er`, `level_ip`, `level_ex` (0 to 2) of the human replies."""
    from attune.classifiers.epitome.levels import score, seeker_post
    from attune.classifiers.epitome.model import MECHANISMS

    posts = [seeker_post(example.context) for example in examples]
    levels = score(folder, posts, [example.target for example in examples], hardware)
    columns = {f"level_{short}": levels[mechanism] for mechanism, short in MECHANISMS.items()}
    return {"id": [example.id for example in examples], **columns}


def score(folder: Path, replies: pd.DataFrame, references: pd.DataFrame, hardware: Hardware) -> dict[str, list[int]]:
    """`diff_*`, `level_*` and `reference_level_*` of each example."""
    from attune.classifiers.epitome import levels
    from attune.classifiers.epitome.scores import per_example
    from attune.data.dialogue import to_turns
    from attune.runtime.distributed import shared_by_ranks

    def score_rows(indices: list[int]) -> dict[str, list[int]]:
        """The levels of the replies with these row numbers."""
        rows = replies.iloc[indices]
        posts = [levels.seeker_post(to_turns(context)) for context in rows["context"]]
        return levels.score(folder, posts, rows["reply"].tolist(), hardware)

    return per_example(shared_by_ranks(len(replies), score_rows), references)


def metrics(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The means of the columns of `score`."""
    from attune.classifiers.epitome.scores import means

    return means(columns)


def signature(folder: Path) -> dict[str, str]:
    """The definition of `diff_*` and the origin of the classifiers."""
    from attune.classifiers.epitome.scores import signature

    return signature(folder)
