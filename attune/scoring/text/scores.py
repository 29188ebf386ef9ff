"""Scores of replies from their texts: overlap, diversity, BERTScore, preference accuracy and custom metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from statistics import fmean
from typing import TYPE_CHECKING

from attune.config.schema import bertscore_encoder
from attune.runtime.distributed import shared_by_ranks
from attune.scoring.common.replies import is_text
from attune.scoring.text import custom, overlap, templates

if TYPE_CHECKING:
    import pandas as pd

    from attune.config.schema import Params


def bertscores(replies: pd.DataFrame, params: Params) -> dict[str, list[float]]:
    """`bertscore_p`, `bertscore_r`, `bertscore_f1` of (N,) replies. Several ranks share them; all must call it.

    Raises:
        ModelError: the encoder cannot be loaded, or has no layer `bertscore.layer`.
    """
    from attune.models.encoder import load_encoder
    from attune.scoring.text.bertscore import bertscore

    model, tokenizer = load_encoder(bertscore_encoder(params), params.hardware)
    settings = params.bertscore

    def score_rows(indices: list[int]) -> dict[str, list[float]]:
        """BERTScore of the replies with these row numbers."""
        rows = replies.iloc[indices]
        texts, references = rows["reply"].tolist(), rows["reference"].tolist()
        return bertscore(texts, references, model, tokenizer, settings.layer, settings.batch_size)

    return shared_by_ranks(len(replies), score_rows)


def score(replies: pd.DataFrame, bert: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """The scores of each example.

    Args:
        replies: (N,) rows, as `read` returns them: `id`, `label`, `context`, `reference`, `reply`, `rejected` (null
            where the corpus has no pair), `reference_logp` and `rejected_logp` (mean nats per token, null without a
            rejected reply). `reference` may be null in replies that were made elsewhere.
        bert: of `bertscores`, a value for each row with a reference; empty: no BERTScore.

    Returns:
        (N,) rows in the order of `replies`: `id`, `label`, the metrics that an example has, each under the name of its
        mean in `metrics/text/<variant>.json` (`preference_accuracy` is NaN without a rejected reply, what compares with
        the reference without a reference), and the counts of BLEU.
    """
    import pandas as pd

    known = [is_text(reference) for reference in replies["reference"].tolist()]
    predictions, compared = replies["reply"].tolist(), replies[known]
    pair = compared["reply"].tolist(), compared["reference"].tolist()
    words = overlap.lengths(predictions)
    columns = {
        **_spread(overlap.rouge_per_example(*pair) if any(known) else {}, known),
        **overlap.distinct_per_reply(predictions),
        **_spread(bert, known),
        "reply_words": words,
        "empty_share": [100.0 * (count == 0) for count in words],
        **templates.per_reply(predictions),
        "preference_accuracy": _preferences(replies),
        **_spread(custom.per_example(*pair), known),
        **_spread(overlap.bleu_counts(*pair) if any(known) else {}, known),
    }
    return pd.DataFrame({"id": replies["id"].tolist(), "label": replies["label"].tolist(), **columns})


def _spread(columns: Mapping[str, Sequence[float]], known: Sequence[bool]) -> dict[str, list[float]]:
    """Columns of the rows that are `known` as columns of all rows, NaN in the others."""
    if all(known):
        return {name: list(column) for name, column in columns.items()}
    values = {name: iter(column) for name, column in columns.items()}
    return {name: [next(column) if one else float("nan") for one in known] for name, column in values.items()}


def _preferences(replies: pd.DataFrame) -> list[float]:
    logps = zip(*(replies[name].tolist() for name in ("rejected", "reference_logp", "rejected_logp")), strict=True)
    return [
        overlap.preferred(reference, rejected) if is_text(text) else float("nan") for text, reference, rejected in logps
    ]


def evaluate(replies: pd.DataFrame, scores: pd.DataFrame) -> dict[str, float]:
    """The metrics of a variant, unrounded; `docs/metrics.md` defines each.

    Args:
        replies: (N,) rows, as `read` returns them.
        scores: of `score`.

    Returns:
        Corpus metrics over the texts, the template shares of the human replies, and the means of the examples' scores.
        `preference_accuracy` is left out when no example has a rejected reply.

    Raises:
        ValueError: no rows.
    """
    counts = [name for name in scores if str(name).startswith("bleu_")]
    means = scores.drop(columns=["id", "label", *counts]).mean().dropna()
    references = _references(replies)
    human = templates.per_reply([text for text in references if text is not None])
    return {
        **overlap.overlap(replies["reply"].tolist(), references),
        **{f"reference_{name}": fmean(shares) for name, shares in human.items() if shares},
        **{str(name): float(mean) for name, mean in means.items()},
    }


def _references(replies: pd.DataFrame) -> list[str | None]:
    return [text if is_text(text) else None for text in replies["reference"].tolist()]


def text_signature(replies: pd.DataFrame) -> dict[str, str]:
    """What explains the metrics that need no encoder: libraries, tokeniser, counts."""
    return overlap.signature(replies["reply"].tolist(), _references(replies))


def signature(replies: pd.DataFrame, params: Params) -> dict[str, str]:
    """What explains the metrics: libraries, tokeniser, counts, the encoder of BERTScore."""
    return {
        **text_signature(replies),
        "preference_accuracy": "mean log-probability per token of reference > rejected; ties count half",
        "preference_examples": str(int(replies["rejected"].notna().sum())),
        **bertscore_signature(params),
    }


def bertscore_signature(params: Params) -> dict[str, str]:
    """What explains BERTScore: definition, layer, encoder, versions."""
    from attune.models.encoder import encoder_signature

    encoder = encoder_signature(bertscore_encoder(params))
    return {
        "bertscore": f"bert-score {version('bert-score')}, no IDF weights, no rescaling; 0 for an empty text",
        "bertscore_layer": str(params.bertscore.layer),
        **{f"bertscore_{name}": value for name, value in encoder.items()},
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
