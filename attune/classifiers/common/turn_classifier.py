"""A classifier of an assistant turn in its context: an encoder, the mean of the reply's states, and a head.

The encoder reads `[CLS] turn [SEP] … turn [SEP] reply [SEP]`; the turns alternate and the last before the reply is the
user's, so that nothing need name the speakers. Which labels there are is the caller's matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.classifiers.common.classifier import BATCH, pad
from attune.compute.batching import batches_by_count
from attune.compute.process import autocast
from attune.data.dialogue import Turn
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
# Of the tokens of an input this share is the context's, where it needs that many; the rest is the reply's.
CONTEXT_SHARE = 4
# What `classifier.json` says of the classifier that explains a number.
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
    """The model (`encoder`, `dense`, `out_proj`), its labels in the order of its logits, and how it reads a turn.

    `context_turns` is 0 where it reads the reply alone.
    """

    model: nn.ModuleDict
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    max_length: int
    context_turns: int


@dataclass(frozen=True)
class Encoded:
    """Token ids of context and reply, (T,), and where the reply begins."""

    ids: tuple[int, ...]
    reply: int


def make_model(encoder: PreTrainedModel, labels: int) -> nn.ModuleDict:
    """A model whose head is random (torch's seed), on the encoder's device."""
    from torch import nn

    width = encoder.config.hidden_size
    head = {"dense": nn.Linear(width, width), "out_proj": nn.Linear(width, labels)}
    for layer in head.values():
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.ModuleDict({"encoder": encoder, **head}).to(encoder.device)


def encode(classifier: TurnClassifier, contexts: Sequence[Sequence[Turn]], replies: Sequence[str]) -> list[Encoded]:
    """Token ids of N replies in their contexts; a long reply loses its end, a long context its beginning.

    Raises:
        ValueError: there are not as many contexts as replies.
    """
    tokenizer, room = classifier.tokenizer, classifier.max_length - 3
    last = classifier.context_turns
    shown = [[turn.text for turn in context[max(0, len(context) - last) :]] for context in contexts]
    distinct = list(dict.fromkeys([*replies, *(text for texts in shown for text in texts)]))
    found = tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"] if distinct else []
    ids = dict(zip(distinct, found, strict=True))
    encoded = []
    for texts, reply in zip(shown, replies, strict=True):
        before = [token for text in texts for token in (*ids[text], tokenizer.sep_token_id)][:-1]
        said = ids[reply][: room - min(len(before), room // CONTEXT_SHARE)]
        before = before[max(0, len(before) - (room - len(said))) :]
        start = [tokenizer.cls_token_id, *([*before, tokenizer.sep_token_id] if last else [])]
        encoded.append(Encoded((*start, *said, tokenizer.sep_token_id), len(start)))
    return encoded


def logits(model: nn.ModuleDict, some: Sequence[Encoded], dropout: float = 0.0) -> torch.Tensor:
    """Logits of the labels, (B, L)."""
    import torch
    from torch.nn.functional import dropout as drop

    parts: Any = model
    device = parts["encoder"].device
    ids, mask = pad([torch.tensor(one.ids, device=device) for one in some])
    starts = torch.tensor([one.reply for one in some], device=device)
    said = mask & (torch.arange(ids.shape[1], device=device) >= starts[:, None])
    # A reply alone is a first segment, as in the encoder's own training.
    second = (said & (starts[:, None] > 1)).long()
    kinds = {"token_type_ids": second} if getattr(parts["encoder"].config, "type_vocab_size", 1) > 1 else {}
    states = parts["encoder"](input_ids=ids, attention_mask=mask.long(), **kinds).last_hidden_state
    mean = (states * said[..., None]).sum(1) / said.sum(1, keepdim=True)
    hidden = parts["dense"](drop(mean, dropout, model.training)).relu()
    return parts["out_proj"](drop(hidden, dropout, model.training))


def probabilities(
    classifier: TurnClassifier, some: Sequence[Encoded], hardware: Hardware, batch_size: int = BATCH
) -> list[list[float]]:
    """Probabilities of the labels, a row an input; equal inputs are read once, in batches of similar length."""
    import torch

    # Sorted, so that no order of the inputs moves the last digits.
    distinct = sorted(set(some), key=lambda one: (one.ids, one.reply))
    rows: dict[Encoded, list[float]] = {}
    with torch.no_grad(), autocast(hardware):
        for batch in batches_by_count([len(one.ids) for one in distinct], batch_size):
            values = logits(classifier.model, [distinct[i] for i in batch]).double().softmax(-1)
            rows |= zip((distinct[i] for i in batch), values.tolist(), strict=True)
    return [rows[one] for one in some]


def save(classifier: TurnClassifier, signature: Mapping[str, object], folder: Path) -> None:
    """Write `folder`, whole or not at all; `signature` is what explains the numbers, kept in `classifier.json`."""
    from safetensors.torch import save_file

    parts: Any = classifier.model
    weights = {name: value.cpu().contiguous() for name, value in parts.state_dict().items()}
    with whole_folder(folder, sum(value.nbytes for value in weights.values())) as partial:
        partial.mkdir()
        save_file(weights, partial / WEIGHTS)
        parts["encoder"].config.save_pretrained(partial)
        classifier.tokenizer.save_pretrained(str(partial))
        canonicalize_model_files(partial)
        read = {"max_length": classifier.max_length, "context_turns": classifier.context_turns}
        write_json(partial / CONFIG, {"labels": list(classifier.labels), **read, **signature})


def classify(
    folder: Path,
    labels: tuple[str, ...],
    contexts: Sequence[Sequence[Turn]],
    replies: Sequence[str],
    hardware: Hardware,
    maker: str,
) -> list[list[float]]:
    """Probabilities of `labels` by the classifier in `folder`, which stage `maker` writes: a row a reply.

    Raises:
        ModelError: as `load`, or it is a classifier of other labels.
        ValueError: there are not as many contexts as replies.
    """
    import torch

    torch.set_num_threads(hardware.threads)
    classifier = load(folder, hardware, maker)
    if classifier.labels != labels:
        raise ModelError(f"{folder} classifies {', '.join(classifier.labels)}, not {', '.join(labels)}")
    return probabilities(classifier, encode(classifier, contexts, replies), hardware)


def describe(folder: Path, prefix: str) -> dict[str, str]:
    """What explains the numbers of the classifier in `folder`, each name after `prefix` and an underscore."""
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return {f"{prefix}_{name}": str(settings[name]) for name in EXPLAINS if name in settings}


def load(folder: Path, hardware: Hardware, maker: str) -> TurnClassifier:
    """Read what `save` wrote, onto `compute.device`, in eval mode; errors name the stage `maker`.

    Raises:
        ModelError: a file is missing, or the parameters are not those of the classifier.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing: run `dvc repro {maker}`")
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    model = make_model(
        AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False)), len(settings["labels"])
    )
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise ModelError(f"{folder / WEIGHTS} does not fit its configuration: {error}") from None
    model.to(hardware.device).eval()
    labels = tuple(settings["labels"])
    return TurnClassifier(
        model,
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        labels,
        settings["max_length"],
        settings["context_turns"],
    )
