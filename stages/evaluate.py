"""Stage `evaluate@<variant>`: score the replies that stage `generate@<variant>` wrote. Loads no policy.

    python -m stages.evaluate <variant>

reads `data/replies/<variant>.parquet`, the levels of the human replies and the classifiers of EPITOME, and writes
`data/scores/<variant>.parquet` (scores by example), `metrics/<variant>.json` (flat, 4 digits) and
`metrics/<variant>.signature.json` (what explains the numbers).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stages import own_metrics
from stages.dialogues import to_turns
from stages.errors import UserError, reported
from stages.files import whole_file, write_json
from stages.launch import run as in_ranks
from stages.params import load
from stages.ranks import by_first, merged, rank, world_size
from stages.scoring import overlap
from stages.scoring.epitome import MECHANISMS, seeker_post
from stages.sections import Params, bertscore_encoder

if TYPE_CHECKING:
    import pandas as pd

REPLIES = Path("data/replies")
REFERENCES = Path("data/references.parquet")
EPITOME = Path("models/epitome")
SCORES = Path("data/scores")
METRICS = Path("metrics")
COLUMNS = ("id", "label", "context", "reference", "reply", "rejected", "reference_logp", "rejected_logp")
# What `models/epitome/epitome.json` says of the classifiers that explains a number here.
CLASSIFIERS = ("classifiers", "encoder", "encoder_origin", "encoder_sha256", "max_length")
DIGITS = 4
Value = TypeVar("Value")


class RepliesError(UserError):
    """A file of replies, or of the levels of the references, is not what this stage can score."""


def score(
    replies: pd.DataFrame,
    bert: Mapping[str, Sequence[float]],
    levels: Mapping[str, Sequence[int]],
    references: pd.DataFrame,
) -> pd.DataFrame:
    """The scores of each example.

    Args:
        replies: (N,) rows, as `read` returns them: `id`, `label`, `context`, `reference`, `reply`, `rejected` (null
            where the corpus has no pair), `reference_logp` and `rejected_logp` (mean nats per token, null without a
            rejected reply).
        bert: of `bertscore`, (N,) each.
        levels: EPITOME's levels of the replies, 0 to 2, mechanism to (N,).
        references: the levels of the human replies, as `read_references` returns them, in the order of `replies`.

    Returns:
        (N,) rows in the order of `replies`: `id`, `label`, and the metrics that an example has, each under the name of
        its mean in `metrics/<variant>.json` (`preference_accuracy` is NaN without a rejected reply), and the counts
        that BLEU is made of.
    """
    import pandas as pd

    predictions, humans = replies["reply"].tolist(), replies["reference"].tolist()
    words = overlap.lengths(predictions)
    columns = {
        **overlap.rouge_per_example(predictions, humans),
        **overlap.distinct_per_reply(predictions),
        **bert,
        **_empathy(levels, references),
        "reply_words": words,
        "empty_share": [100.0 * (count == 0) for count in words],
        "preference_accuracy": _preferences(replies),
        **own_metrics.per_example(predictions, humans),
        **overlap.bleu_counts(predictions, humans),
    }
    return pd.DataFrame({"id": replies["id"].tolist(), "label": replies["label"].tolist(), **columns})


def _preferences(replies: pd.DataFrame) -> list[float]:
    logps = zip(*(replies[name].tolist() for name in ("rejected", "reference_logp", "rejected_logp")), strict=True)
    return [overlap.preferred(own, other) if _is_text(text) else float("nan") for text, own, other in logps]


def _empathy(levels: Mapping[str, Sequence[int]], references: pd.DataFrame) -> dict[str, list[int]]:
    """`level_*`, `reference_level_*` and `diff_*`, the squared difference of the two (Lee et al. 2022)."""
    short = {MECHANISMS[name]: [int(level) for level in column] for name, column in levels.items()}
    human = {key: references[f"level_{key}"].tolist() for key in short}
    pairs = {key: list(zip(short[key], human[key], strict=True)) for key in short}
    return {
        **{f"diff_{key}": [(own - other) ** 2 for own, other in pairs[key]] for key in pairs},
        **{f"level_{key}": column for key, column in short.items()},
        **{f"reference_level_{key}": column for key, column in human.items()},
    }


def evaluate(replies: pd.DataFrame, scores: pd.DataFrame) -> dict[str, float]:
    """The metrics of one variant, unrounded; `docs/metrics.md` has a card for each.

    Args:
        replies: one row per example, as `read` returns it.
        scores: of `score`.

    Returns:
        Corpus metrics over the texts and the means of the examples' scores. `preference_accuracy` is left out when no
        example has a rejected reply.

    Raises:
        ValueError: no rows.
    """
    counts = [name for name in scores if str(name).startswith("bleu_")]
    means = scores.drop(columns=["id", "label", *counts]).mean().dropna()
    return overlap.overlap(replies["reply"].tolist(), replies["reference"].tolist()) | {
        str(name): float(mean) for name, mean in means.items()
    }


def signature(
    replies: pd.DataFrame, encoder: Mapping[str, str], layer: int, classifiers: Mapping[str, object]
) -> dict[str, str]:
    """What explains the metrics: libraries, tokeniser, counts, the encoder of BERTScore, the classifiers of EPITOME."""
    return {
        **overlap.signature(replies["reply"].tolist(), replies["reference"].tolist()),
        "preference_accuracy": "mean log-probability per token of reference > rejected; ties count half",
        "preference_examples": str(int(replies["rejected"].notna().sum())),
        "bertscore": "greedy matching, no IDF weights, no rescaling; 0 for an empty text",
        "bertscore_layer": str(layer),
        **{f"bertscore_{name}": value for name, value in encoder.items()},
        "torch": version("torch"),
        "transformers": version("transformers"),
        "diff": "mean squared difference of the EPITOME levels, 0 to 2, of reply and reference",
        **{f"epitome_{name}": str(classifiers[name]) for name in CLASSIFIERS if name in classifiers},
    }


def read_references(path: Path, replies: pd.DataFrame) -> pd.DataFrame:
    """Read the levels of the human replies, in the order of `replies`.

    Raises:
        RepliesError: the file is missing, or an example of `replies` is not in it.
    """
    import pandas as pd

    try:
        levels = pd.read_parquet(path).set_index("id")
    except FileNotFoundError:
        raise RepliesError(f"{path} is missing: run `dvc repro references`") from None
    missing = [name for name in replies["id"] if name not in levels.index]
    if missing:
        raise RepliesError(f"{path} has no levels of {len(missing)} examples, first {missing[0]}: run `dvc repro`")
    return levels.loc[replies["id"].tolist()]


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


def model_scores(replies: pd.DataFrame, params: Params) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """BERTScore and EPITOME's levels of (N,) replies, as `score` reads them; several ranks share the examples."""
    from stages.modeling.encoder import load_encoder
    from stages.scoring import epitome
    from stages.scoring.bertscore import NAMES, bertscore

    # Where there are fewer examples than ranks, some score the last one again.
    numbers = list(range(len(replies)))[rank() :: world_size()] or [len(replies) - 1]
    own = replies.iloc[numbers]
    texts, humans = own["reply"].tolist(), own["reference"].tolist()
    seekers = [seeker_post(to_turns(context)) for context in own["context"]]
    model, tokenizer = load_encoder(bertscore_encoder(params), params.hardware)
    bert = bertscore(texts, humans, model, tokenizer, params.bertscore.layer, params.bertscore.batch_size)
    levels = epitome.score(EPITOME, seekers, texts, params.hardware)

    def whole(column: Sequence[Value]) -> list[Value]:
        found = merged(dict(zip(numbers, column, strict=True)))
        return [found[number] for number in range(len(replies))]

    return {name: whole(bert[name]) for name in NAMES}, {name: whole(levels[name]) for name in MECHANISMS}


def main(variant: str, params: Params) -> None:
    """Evaluate a variant."""
    replies = read(REPLIES / f"{variant}.parquet")
    references = read_references(REFERENCES, replies)
    bert, levels = model_scores(replies, params)
    by_first(lambda: write(variant, replies, score(replies, bert, levels, references), params))


def write(variant: str, replies: pd.DataFrame, scores: pd.DataFrame, params: Params) -> None:
    """Write a variant's scores, metrics and signature."""
    from stages.modeling.encoder import encoder_signature

    write_scores(scores, SCORES / f"{variant}.parquet")
    metrics = evaluate(replies, scores)
    write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in metrics.items()})
    classifiers = json.loads((EPITOME / "epitome.json").read_text(encoding="utf-8"))
    encoder = encoder_signature(bertscore_encoder(params))
    named = signature(replies, encoder, params.bertscore.layer, classifiers)
    write_json(METRICS / f"{variant}.signature.json", named | engine(REPLIES / f"{variant}.parquet"))


def engine(path: Path) -> dict[str, str]:
    """Name and version of what wrote the replies in `path`; nothing for the built-in engine, which does not say."""
    import pyarrow.parquet as pq

    found = (pq.read_schema(path).metadata or {}).get(b"engine")
    return {"engine": found.decode()} if found else {}


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
