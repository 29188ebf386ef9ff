"""Check models before anything trains; what is wrong with one is one sentence with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.schema import bertscore_encoder
from attune.models.encoder import MADE_LAYERS, read
from attune.models.loading import model_class, tokenizer_in
from attune.models.weights import file_errors, layout, weight_files
from attune.runtime.errors import ModelError

if TYPE_CHECKING:
    from attune.config.schema import Encoder, Params


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


def check_encoders(params: Params) -> None:
    """Check the encoders of the classifiers and of BERTScore as `check_model` does; one of the hub is downloaded.

    For stages that train before any stage loads an encoder. Their outs are independent of it, so they do not depend on
    its section in dvc.yaml: another encoder does not retrain a model.

    Raises:
        ModelError: as `layout` and `read`, or the encoder of BERTScore has no layer `bertscore.layer`.
    """
    layers, compared = _layers(params.encoder, "encoder"), bertscore_encoder(params)
    if compared is not params.encoder:
        layers = _layers(compared, "bertscore")
    if params.bertscore.layer > layers:
        raise ModelError(
            f"bertscore.layer = {params.bertscore.layer}: the encoder {compared.name} has layers 0 to {layers}"
        )


def _layers(encoder: Encoder, section: str) -> int:
    """The number of layers of an encoder that fits."""
    if encoder.source == "made":
        return MADE_LAYERS
    from safetensors import safe_open

    folder = layout(encoder, section)
    config, _ = read(folder, section)
    with file_errors(folder):
        # The head of a file says how long it is: one whose download or copy was cut is refused.
        for path in weight_files(folder):
            with safe_open(path, "pt"):
                pass
    return int(config.num_hidden_layers)
