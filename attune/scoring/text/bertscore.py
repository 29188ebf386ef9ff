"""BERTScore (Zhang et al. 2020): greedy matching of contextual token embeddings.

The numbers equal those of the package bert-score without IDF weights and without rescaling, as the tests check.
Differences to the package: an empty text scores 0 instead of raising, texts are cut at the encoder's positions if the
tokenizer has no limit, each distinct text is encoded once, and RoBERTa gets the space before the first word that
published scores have (with transformers 5 the package drops it, unless the tokenizer was loaded with
`add_prefix_space=True`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    import torch

NAMES = ("bertscore_p", "bertscore_r", "bertscore_f1")
EMPTY = 2
"""Ids of a text without tokens: the two special tokens."""


def bertscore(
    predictions: Sequence[str], references: Sequence[str], model: Any, tokenizer: Any, layer: int, batch_size: int
) -> dict[str, list[float]]:
    """Precision, recall and F1 of each example.

    Args:
        predictions: (N,) replies.
        references: (N,) human replies, in the same order.
        model: a BERT-like encoder in eval mode, on any device.
        tokenizer: the encoder's; it adds one special token before and one after a text.
        layer: whose output is compared: 1 to the number of layers; 0 are the embeddings.
        batch_size: texts per forward pass; changes rounding.

    Returns:
        `bertscore_p`, `bertscore_r`, `bertscore_f1`: (N,) scores times 100, in the order of the examples.

    Raises:
        ModelError: the encoder has no such layer.
        ValueError: no examples, or lists of unequal length.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references: expected as many, some")
    if not 0 <= layer <= model.config.num_hidden_layers:
        raise ModelError(f"bertscore.layer = {layer}: the encoder has layers 0 to {model.config.num_hidden_layers}")
    embeddings = embed([*predictions, *references], model, tokenizer, layer, batch_size)
    scores = [match(embeddings[p.strip()], embeddings[r.strip()]) for p, r in zip(predictions, references, strict=True)]
    return {
        name: [100 * score for score in column] for name, column in zip(NAMES, zip(*scores, strict=True), strict=True)
    }


def embed(texts: Sequence[str], model: Any, tokenizer: Any, layer: int, batch_size: int) -> dict[str, torch.Tensor]:
    """The (T, D) unit embeddings, on the CPU, of the tokens and special tokens of each distinct stripped text."""
    import torch

    space = " " if model.config.model_type == "roberta" else ""
    ids = {
        text: tokenizer(space + text, truncation=True, max_length=limit(model, tokenizer))["input_ids"]
        for text in {text.strip() for text in texts}
    }
    # Batch composition changes rounding: sorting makes it independent of the order of the texts.
    ordered = sorted(ids, key=lambda text: (len(ids[text]), text))
    embeddings: dict[str, torch.Tensor] = {}
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[text] for text in chunk]}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            hidden = model(**batch, output_hidden_states=True).hidden_states[layer]
        unit = torch.nn.functional.normalize(hidden.float(), dim=-1).cpu()
        # Cloned: a view would keep the padded batch in memory.
        embeddings |= {text: unit[i, : len(ids[text])].clone() for i, text in enumerate(chunk)}
    return embeddings


def limit(model: Any, tokenizer: Any) -> int:
    """Maximum length of a text in tokens: the tokenizer's limit or the encoder's positions, if fewer."""
    # The positions of RoBERTa and MPNet start after the padding id.
    offset = tokenizer.pad_token_id + 1 if re.search("roberta|mpnet", model.config.model_type) else 0
    return int(min(tokenizer.model_max_length, model.config.max_position_embeddings - offset))


def match(prediction: torch.Tensor, reference: torch.Tensor) -> tuple[float, float, float]:
    """Precision, recall and F1 of two texts' (T, D) unit embeddings.

    As in bert-score, special tokens are candidates for a match, but have no score of their own.
    """
    if min(len(prediction), len(reference)) <= EMPTY:
        return 0.0, 0.0, 0.0
    similarity = prediction @ reference.T
    precision, recall = (float(similarity.amax(side)[1:-1].mean()) for side in (1, 0))
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
