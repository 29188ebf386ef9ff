"""Stage `references`: levels of empathy in the human replies of the test split, once for all variants.

Writes `data/references.parquet`: a row a test dialogue with `id`, `level_er`, `level_ip` and `level_ex` (0 to 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attune.classifiers.epitome.score import MECHANISMS, score, seeker_post
from attune.config.params import load
from attune.config.schema import Hardware, Params
from attune.data.dialogue import Example, read_examples
from attune.runtime.errors import reported
from attune.runtime.io import write_table

TEST = Path("data/dialogues/test.parquet")
CLASSIFIERS = Path("models/epitome")
TARGET = Path("data/references.parquet")


def reference_levels(examples: Sequence[Example], classifiers: Path, hardware: Hardware) -> dict[str, list[object]]:
    """Columns `id`, `level_er`, `level_ip`, `level_ex` of the examples' targets, in their order.

    Raises:
        ModelError: `classifiers` is not what stage `epitome` writes.
    """
    posts = [seeker_post(one.context) for one in examples]
    levels = score(classifiers, posts, [one.target for one in examples], hardware)
    columns: dict[str, list[object]] = {"id": [one.id for one in examples]}
    return columns | {f"level_{short}": list(levels[mechanism]) for mechanism, short in MECHANISMS.items()}


def main(params: Params) -> None:
    """Write `data/references.parquet`."""
    import pyarrow as pa

    from attune.compute.process import set_up_process

    set_up_process(params.hardware)
    examples = read_examples(TEST, params.corpus)
    columns = reference_levels(examples, CLASSIFIERS, params.hardware)
    write_table(TARGET, pa.table(columns))


if __name__ == "__main__":
    with reported():
        main(load())
