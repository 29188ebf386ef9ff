"""Stage `dbt_scores@<variant>`: the stages of DBT in a variant's replies, beside those in the human replies.

    python -m stages.dbt_scores sft-dpo

reads `data/replies/sft-dpo.parquet`, the probabilities of the human replies and the classifier that `dbt.variants`
names, and writes `data/scores/dbt/sft-dpo.parquet` (scores by example), `metrics/dbt/sft-dpo.json` (flat, times 100)
and `metrics/dbt/sft-dpo.signature.json` (what explains the numbers). Loads no policy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from stages.dialogues import to_turns
from stages.errors import UserError, reported
from stages.files import write_json
from stages.params import Params, load
from stages.scoring.dbt import LABELS, stage_probabilities
from stages.scoring.dbt_metrics import metrics, per_example
from stages.scoring.turn_classifier import CONFIG

REPLIES = Path("data/replies")
REFERENCES = Path("data/references_dbt.parquet")
STAGE = "dbt_references@dbt"
SCORES = Path("data/scores/dbt")
METRICS = Path("metrics/dbt")
DIGITS = 4
# What `classifier.json` says of the classifier that explains a number here.
EXPLAINS = ("classifier", "stages", "encoder", "encoder_origin", "encoder_sha256", "max_length", "context_turns")


class ReferencesError(UserError):
    """Replies, or the probabilities of the human replies, are missing or are of other examples."""


def read(path: Path, stage: str) -> list[dict[str, Any]]:
    """The rows of a parquet file.

    Raises:
        ReferencesError: it is missing or no parquet; names the stage that makes it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except FileNotFoundError:
        raise ReferencesError(f"{path} is missing: run `dvc repro {stage}`") from None
    except pa.ArrowInvalid as error:
        raise ReferencesError(f"{path} is no valid parquet file ({error}): run `dvc repro -f -s {stage}`") from None
    return rows


def references(path: Path, ids: list[str]) -> list[list[float]]:
    """The probabilities of the human replies, (N, 5), in the order of `ids`.

    Raises:
        ReferencesError: the file is missing, or an example is not in it.
    """
    rows = {row["id"]: [row[label] for label in LABELS] for row in read(path, STAGE)}
    missing = [one for one in ids if one not in rows]
    if missing:
        raise ReferencesError(f"{path} lacks {len(missing)} examples, first {missing[0]}: run `dvc repro {STAGE}`")
    return [rows[one] for one in ids]


def main(variant: str, params: Params) -> None:
    """Write the scores and metrics of a variant."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.modeling.loading import set_up_process

    if variant not in params.dbt.variants:
        raise UserError(f"{variant!r} is none of dbt.variants: {', '.join(params.dbt.variants) or 'there are none'}")
    set_up_process(params.hardware)
    folder = Path(params.dbt.variants[variant])
    replies = read(REPLIES / f"{variant}.parquet", f"generate@{variant}")
    ids = [row["id"] for row in replies]
    contexts = [to_turns(row["context"]) for row in replies]
    own = stage_probabilities(folder, contexts, [row["reply"] for row in replies], params.hardware)
    human = references(REFERENCES, ids)
    columns = per_example(own, human)
    SCORES.mkdir(parents=True, exist_ok=True)
    labels = [row["label"] for row in replies]
    pq.write_table(pa.table({"id": ids, "label": labels, **columns}), SCORES / f"{variant}.parquet")
    write_json(METRICS / f"{variant}.json", {key: round(value, DIGITS) for key, value in metrics(columns).items()})
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    explained = {f"dbt_{name}": str(settings[name]) for name in EXPLAINS if name in settings}
    write_json(METRICS / f"{variant}.signature.json", {"dbt_examples": str(len(ids)), **explained})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", help="a key of dbt.variants")
    with reported():
        main(parser.parse_args().variant, load())
