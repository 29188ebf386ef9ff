"""BERTScore (Zhang et al. 2020) over an encoder that is given: greedy matching of contextual token embeddings.

The numbers are those of the package bert-score (without IDF weights and without rescaling), which the tests hold it to.
What is otherwise here: an empty text scores 0 instead of raising, a tokenizer without a length limit is cut at the
encoder's positions, each distinct text is encoded once, and RoBERTa gets the space before the first word that published
scores have (with transformers 5 the package drops it, unless the tokenizer was loaded with `add_prefix_space=True`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    import torch

NAMES = ("bertscore_p", "bertscore_r", "bertscore_f1")
EMPTY = 2
"""Ids of a text without tokens: the two special tokens around nothing."""


def bertscore(
    predictions: Sequence[str], references: Sequence[str], model: Any, tokenizer: Any, layer: int, batch_size: int
) -> dict[str, list[float]]:
    """Precision, recall and F1 of each example.

    Args:
        predictions: (N,) replies.
        references: (N,) human replies, in the same order.
        model: a BERT-like encoder in eval mode; its device is used.
        tokenizer: the encoder's; it puts one special token before and one behind a text.
        layer: whose output is compared, 1 to the encoder's last; 0 the embeddings.
        batch_size: texts encoded at once; changes the last digits.

    Returns:
        `bertscore_p`, `bertscore_r`, `bertscore_f1`: (N,) scores x 100, in the order of the examples.

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
    """Each distinct text, stripped, to the (T, D) unit embeddings of its tokens and special tokens, on the CPU."""
    import torch

    space = " " if model.config.model_type == "roberta" else ""
    ids = {
        text: tokenizer(space + text, truncation=True, max_length=limit(model, tokenizer))["input_ids"]
        for text in {text.strip() for text in texts}
    }
    # Texts of one length lie together, and the batches hang on the texts alone, not on their order.
    ordered = sorted(ids, key=lambda text: (len(ids[text]), text))
    found: dict[str, torch.Tensor] = {}
    for start in range(0, len(ordered), batch_size):
        part = ordered[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[text] for text in part]}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            hidden = model(**batch, output_hidden_states=True).hidden_states[layer]
        unit = torch.nn.functional.normalize(hidden.float(), dim=-1).cpu()
        found |= {text: unit[i, : len(ids[text])].clone() for i, text in enumerate(part)}
    return found


def limit(model: Any, tokenizer: Any) -> int:
    """Longest text in tokens: the tokenizer's limit or the encoder's positions; RoBERTa's begin behind padding."""
    lost = tokenizer.pad_token_id + 1 if "roberta" in model.config.model_type else 0
    return int(min(tokenizer.model_max_length, model.config.max_position_embeddings - lost))


def match(prediction: torch.Tensor, reference: torch.Tensor) -> tuple[float, float, float]:
    """Precision, recall, F1 of two texts' (T, D) unit embeddings; special tokens can be matched but do not count."""
    if min(len(prediction), len(reference)) <= EMPTY:
        return 0.0, 0.0, 0.0
    similar = prediction @ reference.T
    precision, recall = (float(similar.amax(side)[1:-1].mean()) for side in (1, 0))
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
