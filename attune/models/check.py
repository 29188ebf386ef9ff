"""Check a base model before anything trains on it; what is wrong with it is one sentence with a remedy."""

from __future__ import annotations

from pathlib import Path

from attune.models.loading import model_class, tokenizer_in
from attune.models.weights import weight_files


def check_model(folder: Path) -> None:
    """Check the files, the architecture and the chat template of the model in `folder`, without loading its weights.

    Raises:
        ModelError: a file is missing, weights are pickled, it is an encoder, it needs code that comes with it, or it
            has no chat template or EOS token.
        TemplateError: the chat template hides where a reply begins or ends.
    """
    weight_files(folder)
    model_class(folder)
    tokenizer_in(folder)
