"""How a classifier of assistant turns learns from labelled turns, and how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.classifiers.common.classifier import accuracy, calibration_error, f1, fit, macro_f1
from attune.classifiers.common.turn_classifier import Encoded, TurnClassifier, encode, logits, make_model, probabilities
from attune.labels.turn_labels import Labelled

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Hardware, TurnTraining


def learn(
    encoder: tuple[PreTrainedModel, Tokenizer],
    labels: tuple[str, ...],
    labelled: Labelled,
    settings: TurnTraining,
    context_turns: int,
    hardware: Hardware,
    seed: int,
    checkpoint: Path,
) -> tuple[TurnClassifier, dict[str, float]]:
    """Train a classifier on `encoder`, whose weights change, and measure it, in percent.

    Args:
        encoder: of `load_encoder`.
        labels: in the order of the indices of `labelled`.
        labelled: turns of the splits train, valid and test.
        settings: hyperparameters.
        context_turns: turns before the reply that it reads; 0: the reply alone.
        hardware: device and precision.
        seed: of the head, order and dropout.
        checkpoint: folder of what to go on from, of `fit`; its name keys the order, too.

    Returns:
        The classifier; `quality` on the test split with accuracy and macro-F1 on valid, by which hyperparameters are
        chosen.
    """
    import torch

    torch.manual_seed(seed)
    model, tokenizer = make_model(encoder[0], len(labels)), encoder[1]
    classifier = TurnClassifier(model, tokenizer, labels, settings.max_length, context_turns)
    inputs, truth = {}, {}
    for split, rows in labelled.items():
        inputs[split] = encode(classifier, [one.context for one in rows], [one.reply for one in rows])
        truth[split] = [one.label for one in rows]
    train(classifier, inputs["train"], truth["train"], settings, hardware, f"{seed}:{checkpoint.stem}", checkpoint)
    found = {
        split: quality(labels, truth[split], probabilities(classifier, inputs[split], hardware))
        for split in ("test", "valid")
    }
    return classifier, found["test"] | {f"valid_{name}": found["valid"][name] for name in ("accuracy", "macro_f1")}


def train(
    classifier: TurnClassifier,
    some: Sequence[Encoded],
    labels: Sequence[int],
    settings: TurnTraining,
    hardware: Hardware,
    seed: str,
    checkpoint: Path,
) -> None:
    """Train encoder and head by cross-entropy; the model is left in eval mode, with the weights of the last epoch.

    Every example weighs the same, so that the probabilities follow the shares of the labels in the training part.

    Args:
        classifier: whose model is trained in place.
        some: N inputs, of `encode`.
        labels: their N labels, as indices of `classifier.labels`.
        settings: hyperparameters.
        hardware: device and precision.
        seed: keys order and dropout of each epoch.
        checkpoint: folder of what to go on from, of `fit`.
    """
    model = classifier.model
    encoder = list(model["encoder"].parameters())
    heads = [*model["dense"].parameters(), *model["out_proj"].parameters()]

    def loss(batch: list[int]) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        values = logits(model, [some[i] for i in batch], settings.dropout)
        return cross_entropy(values.float(), torch.tensor([labels[i] for i in batch], device=values.device))

    fit(
        model,
        [(encoder, settings.learning_rate), (heads, settings.head_learning_rate)],
        [len(one.ids) for one in some],
        loss,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        hardware=hardware,
        seed=seed,
        checkpoint=checkpoint,
    )


def quality(labels: Sequence[str], truth: Sequence[int], probabilities: Sequence[Sequence[float]]) -> dict[str, float]:
    """How good N answers are, in percent; all 0 without any.

    Returns:
        accuracy, macro-F1, the F1 of each label, the expected calibration error, and for comparison accuracy and
        macro-F1 of an answer that is always the most frequent label.
    """
    guessed = [max(range(len(row)), key=row.__getitem__) for row in probabilities]
    majority = [max(range(len(labels)), key=truth.count)] * len(truth)
    return {
        "accuracy": accuracy(truth, guessed),
        "macro_f1": macro_f1(truth, guessed),
        **{f"f1_{label.replace('-', '_')}": f1(truth, guessed, i) for i, label in enumerate(labels)},
        "calibration_error": calibration_error(truth, probabilities),
        "majority_accuracy": accuracy(truth, majority),
        "majority_macro_f1": macro_f1(truth, majority),
    }
