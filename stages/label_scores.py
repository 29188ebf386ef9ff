"""Stage `<scorer>_scores@<variant>`: what a scorer's classifiers see in a variant's replies, beside the human replies.

    python -m stages.label_scores sft-dpo dbt

reads `data/replies/sft-dpo.parquet`, the labels of the human replies and the classifiers that `dbt.variants` names, and
writes `data/scores/dbt/sft-dpo.parquet` (scores by example), `metrics/dbt/sft-dpo.json` (flat) and
`metrics/dbt/sft-dpo.signature.json` (what explains the numbers). The other scorer is `behaviour`. Loads no policy.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from attune.config.params import folder_of, load
from attune.config.schema import Params, label_classifiers
from attune.data.dialogue import to_turns
from attune.runtime.errors import DataError, reported
from attune.runtime.io import write_json, write_table

REPLIES = Path("data/replies")
REFERENCES = Path("data")
SCORES = Path("data/scores")
METRICS = Path("metrics")
DIGITS = 4


def read(path: Path, stage: str) -> list[dict[str, Any]]:
    """The rows of a parquet file.

    Raises:
        DataError: it is missing or no parquet; names the stage that makes it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro {stage}`") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no valid parquet file ({error}): run `dvc repro -f -s {stage}`") from None
    return rows


def references(path: Path, ids: list[str], labels: tuple[str, ...], stage: str) -> list[list[float]]:
    """The labels of the human replies, (N, len(labels)), in the order of `ids`.

    Raises:
        DataError: the file, which `stage` makes, is missing, or an example is not in it.
    """
    rows = {row["id"]: [row[label] for label in labels] for row in read(path, stage)}
    missing = [one for one in ids if one not in rows]
    if missing:
        raise DataError(f"{path} lacks {len(missing)} examples, first {missing[0]}: run `dvc repro {stage}`")
    return [rows[one] for one in ids]


def main(variant: str, params: Params, scorer: str) -> None:
    """Write the scores and metrics of a variant.

    Raises:
        UserError: `<scorer>.variants` does not name it, or `read` and `references` as they say.
    """
    import pyarrow as pa

    from attune.compute.process import set_up_process

    variants = label_classifiers(params)[scorer].variants
    folder = folder_of(variants, variant, f"{scorer}.variants")
    set_up_process(params.hardware)
    labels, made = import_module(f"stages.scoring.{scorer}"), import_module(f"stages.scoring.{scorer}_metrics")
    replies = read(REPLIES / f"{variant}.parquet", f"generate@{variant}")
    ids = [row["id"] for row in replies]
    contexts = [to_turns(row["context"]) for row in replies]
    own = labels.probabilities(folder, contexts, [row["reply"] for row in replies], params.hardware)
    stage = f"{scorer}_references@{scorer}"
    human = references(REFERENCES / f"references_{scorer}.parquet", ids, labels.LABELS, stage)
    columns = made.per_example(own, human)
    scores, metrics = SCORES / scorer, METRICS / scorer
    table = pa.table({"id": ids, "label": [row["label"] for row in replies], **columns})
    write_table(scores / f"{variant}.parquet", table)
    found = {name: round(value, DIGITS) for name, value in made.metrics(columns).items()}
    write_json(metrics / f"{variant}.json", found)
    counted = {f"{scorer}_examples": str(len(ids))}
    write_json(metrics / f"{variant}.signature.json", counted | labels.signature(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", help="a key of <scorer>.variants")
    parser.add_argument("scorer", choices=("dbt", "behaviour"))
    with reported():
        given = parser.parse_args()
        main(given.variant, load(), given.scorer)
