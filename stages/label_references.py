"""Stage `<scorer>_references`: what a scorer's classifiers see in the human replies of the test split, once for all.

    python -m stages.label_references dbt models/dbt

writes `data/references_dbt.parquet`: a row an example with `id` and a column a label of `attune/classifiers/dbt/classifier.py`. The
other scorer is `behaviour`.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from attune.config.params import load
from attune.config.schema import Params
from attune.data.dialogue import read_examples
from attune.runtime.errors import reported
from attune.runtime.io import write_table

TEST = Path("data/dialogues/test.parquet")
TARGETS = Path("data")


def main(scorer: str, folder: Path, params: Params) -> None:
    """Write `data/references_<scorer>.parquet` by the classifiers in a folder.

    Raises:
        ModelError: the folder is not what stage `<scorer>` writes.
    """
    import pyarrow as pa

    from attune.compute.process import set_up_process

    set_up_process(params.hardware)
    labels = import_module(f"stages.scoring.{scorer}")
    some = read_examples(TEST, params.corpus)
    rows = labels.probabilities(folder, [one.context for one in some], [one.target for one in some], params.hardware)
    columns = {label: [row[i] for row in rows] for i, label in enumerate(labels.LABELS)}
    write_table(TARGETS / f"references_{scorer}.parquet", pa.table({"id": [one.id for one in some], **columns}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorer", choices=("dbt", "behaviour"))
    parser.add_argument("folder", type=Path, help="what stage `<scorer>` wrote")
    with reported():
        given = parser.parse_args()
        main(given.scorer, given.folder, load())
