"""Stage `references@<classifier>`: classifier labels of the human replies to held-out contexts, shared by all variants.

    python -m stages.references epitome

writes `data/references/epitome.parquet`: a row per example of `generate.split`, with `id` and a column per label.
"""

from __future__ import annotations

from pathlib import Path

from attune.classifiers import by_key
from attune.config.params import load, named
from attune.config.schema import Params
from attune.data.examples import read_examples
from attune.runtime.arrow_stream import write_table
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported

MODELS = Path("models")
REFERENCES = Path("data/references")


def main(name: str, params: Params) -> None:
    """Write `data/references/<name>.parquet`."""
    import pyarrow as pa

    from attune.compute.process import set_up_process

    named(params.classifiers, name, "classifiers")
    set_up_process(params.hardware)
    classifier, examples = by_key(name), read_examples(params.generate.dialogues, params.context)
    columns = classifier.label_references(MODELS / name, examples, params.hardware)
    write_table(REFERENCES / f"{name}.parquet", pa.table(columns))


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, classifier="a key of classifiers")
        main(arguments.classifier, load())
