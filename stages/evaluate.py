"""Stage `evaluate@<variant>`: score the replies that stage `generate@<variant>` wrote. Loads no policy.

    python -m stages.evaluate <variant>

reads `data/replies/<variant>.parquet`, the levels of the human replies and the classifiers of EPITOME, and writes
`data/scores/<variant>.parquet` (scores by example), `metrics/<variant>.json` (flat, 4 digits) and
`metrics/<variant>.signature.json` (what explains the numbers).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from attune.classifiers.epitome.score import MECHANISMS, seeker_post
from attune.config.params import load
from attune.config.schema import Params, bertscore_encoder
from attune.data.dialogue import to_turns
from attune.runtime.distributed import gather_by_index, on_main_process, rank, world_size
from attune.runtime.errors import DataError, reported
from attune.runtime.io import whole_file, write_json
from attune.runtime.launch import run as in_ranks

if TYPE_CHECKING:
    import pandas as pd
from attune.scoring.common.replies import engine, read
from attune.scoring.text.scores import evaluate, score, signature

REPLIES = Path("data/replies")
REFERENCES = Path("data/references.parquet")
EPITOME = Path("models/epitome")
SCORES = Path("data/scores")
METRICS = Path("metrics")
DIGITS = 4
Value = TypeVar("Value")


def read_references(path: Path, replies: pd.DataFrame) -> pd.DataFrame:
    """Read the levels of the human replies, in the order of `replies`.

    Raises:
        DataError: the file is missing, or an example of `replies` is not in it.
    """
    import pandas as pd

    try:
        levels = pd.read_parquet(path).set_index("id")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro references`") from None
    missing = [name for name in replies["id"] if name not in levels.index]
    if missing:
        raise DataError(f"{path} has no levels of {len(missing)} examples, first {missing[0]}: run `dvc repro`")
    return levels.loc[replies["id"].tolist()]


def model_scores(replies: pd.DataFrame, params: Params) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """BERTScore and EPITOME's levels of (N,) replies, as `score` reads them; several ranks share the examples."""
    from attune.models.encoder import load_encoder
    from attune.scoring.text.bertscore import NAMES, bertscore

    # Where there are fewer examples than ranks, some score the last one again.
    numbers = list(range(len(replies)))[rank() :: world_size()] or [len(replies) - 1]
    own = replies.iloc[numbers]
    texts, humans = own["reply"].tolist(), own["reference"].tolist()
    seekers = [seeker_post(to_turns(context)) for context in own["context"]]
    model, tokenizer = load_encoder(bertscore_encoder(params), params.hardware)
    bert = bertscore(texts, humans, model, tokenizer, params.bertscore.layer, params.bertscore.batch_size)
    levels = epitome.score(EPITOME, seekers, texts, params.hardware)

    def whole(column: Sequence[Value]) -> list[Value]:
        found = gather_by_index(dict(zip(numbers, column, strict=True)))
        return [found[number] for number in range(len(replies))]

    return {name: whole(bert[name]) for name in NAMES}, {name: whole(levels[name]) for name in MECHANISMS}


def main(variant: str, params: Params) -> None:
    """Evaluate a variant."""
    replies = read(REPLIES / f"{variant}.parquet")
    references = read_references(REFERENCES, replies)
    bert, levels = model_scores(replies, params)
    on_main_process(lambda: write(variant, replies, score(replies, bert, levels, references), params))


def write(variant: str, replies: pd.DataFrame, scores: pd.DataFrame, params: Params) -> None:
    """Write a variant's scores, metrics and signature."""
    from attune.models.encoder import encoder_signature

    write_scores(scores, SCORES / f"{variant}.parquet")
    metrics = evaluate(replies, scores)
    write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in metrics.items()})
    classifiers = json.loads((EPITOME / "epitome.json").read_text(encoding="utf-8"))
    encoder = encoder_signature(bertscore_encoder(params))
    named = signature(replies, encoder, params.bertscore.layer, classifiers)
    write_json(METRICS / f"{variant}.signature.json", named | engine(REPLIES / f"{variant}.parquet"))


def write_scores(scores: pd.DataFrame, path: Path) -> None:
    """Write the scores of the examples as parquet."""
    with whole_file(path, int(scores.memory_usage(deep=True).sum())) as temporary:
        scores.to_parquet(temporary, index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", help=f"its replies are in {REPLIES}/<variant>.parquet")
    variant = parser.parse_args().variant
    with reported():
        params = load()
        in_ranks(lambda: main(variant, params), params.hardware)
