"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from attune.classifiers.epitome import scores as epitome_metrics
from attune.scoring.common.replies import _is_text
from attune.scoring.text import custom, overlap

if TYPE_CHECKING:
    import pandas as pd


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
        **epitome_metrics.per_example(levels, references),
        "reply_words": words,
        "empty_share": [100.0 * (count == 0) for count in words],
        "preference_accuracy": _preferences(replies),
        **custom.per_example(predictions, humans),
        **overlap.bleu_counts(predictions, humans),
    }
    return pd.DataFrame({"id": replies["id"].tolist(), "label": replies["label"].tolist(), **columns})


def _preferences(replies: pd.DataFrame) -> list[float]:
    logps = zip(*(replies[name].tolist() for name in ("rejected", "reference_logp", "rejected_logp")), strict=True)
    return [overlap.preferred(own, other) if _is_text(text) else float("nan") for text, own, other in logps]


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
        **{f"epitome_{name}": str(classifiers[name]) for name in epitome_metrics.CLASSIFIERS if name in classifiers},
    }
