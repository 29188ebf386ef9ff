"""BERTScore (Zhang et al. 2020), by the package bert-score: greedy matching of contextual token embeddings.

The package embeds and matches, without IDF weights and without rescaling. Its entry points are not used, because of
what they do with transformers 5 and with a local encoder: an empty text raises (here it scores 0), a tokenizer without
a limit raises (here the encoder's positions are the limit), RoBERTa loses the space before the first word that
published scores have (here it is written), pickled weights may be loaded (here the encoder is given), and texts are
batched in the order of a Python set, which differs between processes, and so the last digits (here they are sorted).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    import torch

    # A text as the package matches it: (1, T, D) embeddings, (1, T) mask, (1, T) weights of the tokens.
    Embedded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

NAMES = ("bertscore_p", "bertscore_r", "bertscore_f1")


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
    pairs = [
        (prediction.strip(), reference.strip()) for prediction, reference in zip(predictions, references, strict=True)
    ]
    embedded = embed([text for pair in pairs for text in pair], model, tokenizer, layer, batch_size)
    scores = [match(embedded[prediction], embedded[reference]) if prediction and reference else (0.0, 0.0, 0.0)
              for prediction, reference in pairs]  # fmt: skip
    return {
        name: [100 * score for score in column] for name, column in zip(NAMES, zip(*scores, strict=True), strict=True)
    }


def embed(texts: Sequence[str], model: Any, tokenizer: Any, layer: int, batch_size: int) -> dict[str, Embedded]:
    """Each distinct text that is not empty, embedded by the package, on the CPU. Special tokens have the weight 0."""
    from bert_score.utils import get_bert_embedding

    weights = defaultdict(lambda: 1.0, {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0})
    given = _Encoder(model, layer), _Tokenizer(model, tokenizer)
    # Batch composition changes rounding: sorting makes it independent of the order of the texts.
    ordered = sorted(set(filter(None, texts)), key=lambda text: (len(text), text))
    embedded: dict[str, Embedded] = {}
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        parts = [part.cpu() for part in get_bert_embedding(chunk, *given, weights, device=model.device)]
        for i, text in enumerate(chunk):
            length = int(parts[1][i].sum())
            # Cloned: a view would keep the padded batch in memory.
            embedding, mask, weight = (part[i : i + 1, :length].clone() for part in parts)
            embedded[text] = embedding.float(), mask, weight
    return embedded


def match(prediction: Embedded, reference: Embedded) -> tuple[float, float, float]:
    """Precision, recall and F1 of two texts, by the package: special tokens can be matched, and are not averaged.

    Pair by pair: padding to the longest pair of a batch would change the last digits.
    """
    from bert_score.utils import greedy_cos_idf

    # The package normalises in place.
    precision, recall, f1 = greedy_cos_idf(*(part.clone() for text in (reference, prediction) for part in text))
    return float(precision), float(recall), float(f1)


class _Encoder:
    """The encoder as the package calls it, with one layer's output in place of the last one's."""

    def __init__(self, model: Any, layer: int) -> None:
        self.model, self.layer = model, layer

    def eval(self) -> None:
        self.model.eval()

    def __call__(self, ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        output = self.model(ids, attention_mask=attention_mask, output_hidden_states=True)
        return (output.hidden_states[self.layer],)


class _Tokenizer:
    """The tokenizer as the package calls it, with the encoder's limit and with RoBERTa's space."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.tokenizer, self.pad_token_id = tokenizer, tokenizer.pad_token_id
        self.model_max_length = limit(model, tokenizer)
        self.space = " " if model.config.model_type == "roberta" else ""

    def encode(self, text: str, **options: Any) -> list[int]:
        return list(self.tokenizer.encode(self.space + text, **options))


def limit(model: Any, tokenizer: Any) -> int:
    """Maximum length of a text in tokens: the tokenizer's limit or the encoder's positions, if fewer."""
    # The positions of RoBERTa and MPNet start after the padding id.
    offset = tokenizer.pad_token_id + 1 if re.search("roberta|mpnet", model.config.model_type) else 0
    return int(min(tokenizer.model_max_length, model.config.max_position_embeddings - offset))
