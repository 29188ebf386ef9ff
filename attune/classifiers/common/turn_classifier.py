"""A classifier of an assistant turn in its context: an encoder, mean pooling over the reply's tokens, and an MLP head.

The encoder reads `[CLS] turn [SEP] … turn [SEP] reply [SEP]`. Turns alternate and the last one before the reply is the
user's, so the input does not name the speakers. The caller defines the labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.classifiers.common.batching import BATCH_SIZE, pad
from attune.compute.batching import batches_by_count
from attune.compute.process import autocast
from attune.data.dialogue import Turn, split_system
from attune.runtime.errors import ModelError
from attune.runtime.io import canonicalize_model_files, whole_folder, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Hardware

CONFIG = "classifier.json"
WEIGHTS = "classifier.safetensors"
# One token in four is reserved for the context, if it has as many; a long reply is cut to the rest.
CONTEXT_SHARE = 4
# Keys of `classifier.json` that explain a metric.
EXPLAINS = (
    "classifier",
    "stages",
    "adherence",
    "encoder",
    "encoder_origin",
    "encoder_sha256",
    "max_length",
    "context_turns",
)


@dataclass(frozen=True)
class TurnClassifier:
    """The model (`encoder`, `dense`, `out_proj`), its labels in the order of its logits, and the limits of its input.

    `context_turns` is 0 if it reads the reply alone.
    """

    model: nn.ModuleDict
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    max_length: int
    context_turns: int


@dataclass(frozen=True)
class Encoded:
    """Token ids of context and reply, (T,), and the position of the reply's first token."""

    ids: tuple[int, ...]
    reply: int


def make_model(encoder: PreTrainedModel, labels: int) -> nn.ModuleDict:
    """A model with a random head (torch's seed), on the encoder's device."""
    from torch import nn

    width = encoder.config.hidden_size
    head = {"dense": nn.Linear(width, width), "out_proj": nn.Linear(width, labels)}
    for layer in head.values():
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.ModuleDict({"encoder": encoder, **head}).to(encoder.device)


def encode(classifier: TurnClassifier, contexts: Sequence[Sequence[Turn]], replies: Sequence[str]) -> list[Encoded]:
    """Token ids of N replies in their contexts; a long reply is cut at its end, a long context at its beginning.

    Raises:
        ValueError: the numbers of contexts and replies differ.
    """
    tokenizer, context_turns = classifier.tokenizer, classifier.context_turns
    room = classifier.max_length - 3  # [CLS], and [SEP] after context and reply
    spoken = [split_system(context)[1] for context in contexts]
    turns = [[turn.text for turn in context[max(0, len(context) - context_turns) :]] for context in spoken]
    distinct = list(dict.fromkeys([*replies, *(text for texts in turns for text in texts)]))
    input_ids = tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"] if distinct else []
    ids = dict(zip(distinct, input_ids, strict=True))
    encoded = []
    for texts, reply in zip(turns, replies, strict=True):
        context_ids = [token for text in texts for token in (*ids[text], tokenizer.sep_token_id)][:-1]
        reply_ids = ids[reply][: room - min(len(context_ids), room // CONTEXT_SHARE)]
        context_ids = context_ids[max(0, len(context_ids) - (room - len(reply_ids))) :]
        start = [tokenizer.cls_token_id, *([*context_ids, tokenizer.sep_token_id] if context_turns else [])]
        encoded.append(Encoded((*start, *reply_ids, tokenizer.sep_token_id), len(start)))
    return encoded


def logits(model: nn.ModuleDict, inputs: Sequence[Encoded], dropout: float = 0.0) -> torch.Tensor:
    """Logits of the labels, (B, L)."""
    import torch
    from torch.nn.functional import dropout as drop

    parts: Any = model
    device = parts["encoder"].device
    ids, mask = pad([torch.tensor(encoded.ids, device=device) for encoded in inputs])
    starts = torch.tensor([encoded.reply for encoded in inputs], device=device)
    in_reply = mask & (torch.arange(ids.shape[1], device=device) >= starts[:, None])
    # A reply without context is a first segment, as a single text was in the encoder's pretraining.
    segments = (in_reply & (starts[:, None] > 1)).long()
    segment_ids = {"token_type_ids": segments} if getattr(parts["encoder"].config, "type_vocab_size", 1) > 1 else {}
    states = parts["encoder"](input_ids=ids, attention_mask=mask.long(), **segment_ids).last_hidden_state
    mean = (states * in_reply[..., None]).sum(1) / in_reply.sum(1, keepdim=True)
    hidden = parts["dense"](drop(mean, dropout, model.training)).relu()
    return parts["out_proj"](drop(hidden, dropout, model.training))


def probabilities(
    classifier: TurnClassifier, inputs: Sequence[Encoded], hardware: Hardware, batch_size: int = BATCH_SIZE
) -> list[list[float]]:
    """Probabilities of the labels, one row per input; each distinct input is computed once, batched by length."""
    import torch

    # Batch composition changes rounding: sorting makes it independent of the order of the inputs.
    distinct = sorted(set(inputs), key=lambda encoded: (encoded.ids, encoded.reply))
    rows: dict[Encoded, list[float]] = {}
    with torch.no_grad(), autocast(hardware):
        for batch in batches_by_count([len(encoded.ids) for encoded in distinct], batch_size):
            values = logits(classifier.model, [distinct[i] for i in batch]).double().softmax(-1)
            rows |= zip((distinct[i] for i in batch), values.tolist(), strict=True)
    return [rows[encoded] for encoded in inputs]


def save(classifier: TurnClassifier, signature: Mapping[str, object], folder: Path) -> None:
    """Write `folder` atomically; `signature` explains the numbers and is stored in `classifier.json`."""
    from safetensors.torch import save_file

    parts: Any = classifier.model
    weights = {name: value.cpu().contiguous() for name, value in parts.state_dict().items()}
    with whole_folder(folder, sum(value.nbytes for value in weights.values())) as partial:
        partial.mkdir()
        save_file(weights, partial / WEIGHTS)
        parts["encoder"].config.save_pretrained(partial)
        classifier.tokenizer.save_pretrained(str(partial))
        canonicalize_model_files(partial)
        limits = {"max_length": classifier.max_length, "context_turns": classifier.context_turns}
        write_json(partial / CONFIG, {"labels": list(classifier.labels), **limits, **signature})


def classify(
    folder: Path,
    labels: tuple[str, ...],
    contexts: Sequence[Sequence[Turn]],
    replies: Sequence[str],
    hardware: Hardware,
    stage: str,
) -> list[list[float]]:
    """Probabilities of `labels`, one row per reply, by the classifier in `folder`.

    Args:
        folder: written by `save`.
        labels: expected of the classifier.
        contexts: the turns before each of N replies.
        replies: N texts.
        hardware: device and precision.
        stage: the one that writes `folder`, for errors.

    Raises:
        ModelError: as `load`, or the classifier has other labels.
        ValueError: the numbers of contexts and replies differ.
    """
    import torch

    torch.set_num_threads(hardware.threads)
    classifier = load(folder, hardware, stage)
    if classifier.labels != labels:
        raise ModelError(f"{folder} classifies {', '.join(classifier.labels)}, not {', '.join(labels)}")
    return probabilities(classifier, encode(classifier, contexts, replies), hardware)


def describe(folder: Path, prefix: str) -> dict[str, str]:
    """The origin and the limits of the classifier in `folder`: `<prefix>_encoder` and so on."""
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return {f"{prefix}_{name}": str(settings[name]) for name in EXPLAINS if name in settings}


def load(folder: Path, hardware: Hardware, stage: str) -> TurnClassifier:
    """Read what `save` wrote, onto `compute.device`, in eval mode.

    Raises:
        ModelError: a file is missing (names `stage`, which writes it), or the weights do not fit the configuration.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.initialization import no_init_weights

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing: run `dvc repro {stage}`")
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    # Every weight is read below.
    with no_init_weights():
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        model = make_model(encoder, len(settings["labels"]))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise ModelError(f"{folder / WEIGHTS} does not fit its configuration: {error}") from None
    model.to(hardware.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    limits = (settings["max_length"], settings["context_turns"])
    return TurnClassifier(model, tokenizer, tuple(settings["labels"]), *limits)
