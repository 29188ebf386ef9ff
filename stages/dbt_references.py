"""Stage `dbt_references@<classifier>`: the stages of DBT in the human replies of the test split, once for all variants.

    python -m stages.dbt_references dbt

writes `data/references_dbt.parquet`: a row an example with `id` and the five probabilities `listening`, `reflecting`,
`acknowledging`, `genuine` and `none`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages.dialogues import Example, read_examples
from stages.errors import reported
from stages.params import Hardware, Params, load
from stages.scoring.dbt import LABELS, stage_probabilities

TEST = Path("data/dialogues/test.parquet")
TARGET = Path("data/references_dbt.parquet")


def reference_stages(some: Sequence[Example], classifier: Path, hardware: Hardware) -> dict[str, list[object]]:
    """Columns `id` and the labels of the classifier, of the examples' targets, in their order.

    Raises:
        ClassifierError: `classifier` is not what stage `dbt` writes.
    """
    rows = stage_probabilities(classifier, [one.context for one in some], [one.target for one in some], hardware)
    return {"id": [one.id for one in some], **{label: [row[i] for row in rows] for i, label in enumerate(LABELS)}}


def main(name: str, params: Params) -> None:
    """Write `data/references_dbt.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.modeling.loading import set_up_process

    set_up_process(params.hardware)
    some = read_examples(TEST, params.corpus)
    columns = reference_stages(some, Path(params.dbt.classifiers[name]), params.hardware)
    pq.write_table(pa.table(columns), TARGET)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="a key of dbt.classifiers")
    with reported():
        main(parser.parse_args().classifier, load())
