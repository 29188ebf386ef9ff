"""Training and measuring a classifier of assistant turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attune.classifiers.common.fit import fit
from attune.classifiers.common.quality import accuracy, calibration_error, f1, macro_f1, majority
from attune.classifiers.common.turn_classifier import Encoded, TurnClassifier, encode, logits, make_model, probabilities
from attune.labels.turn_labels import Labelled

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Hardware, TurnTraining


def train_and_measure(
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
        seed: of head, order and dropout.
        checkpoint: folder to resume from, as in `fit`; its name is part of the seed of the order.

    Returns:
        The classifier, and `quality` on test with `valid_accuracy` and `valid_macro_f1`, which choose hyperparameters.
    """
    import torch

    torch.manual_seed(seed)
    model, tokenizer = make_model(encoder[0], len(labels)), encoder[1]
    classifier = TurnClassifier(model, tokenizer, labels, settings.max_length, context_turns)
    inputs, truth = {}, {}
    for split, turns in labelled.items():
        inputs[split] = encode(classifier, [turn.context for turn in turns], [turn.reply for turn in turns])
        truth[split] = [turn.label for turn in turns]
    train(classifier, inputs["train"], truth["train"], settings, hardware, f"{seed}:{checkpoint.stem}", checkpoint)
    test, valid = (
        quality(labels, truth[split], probabilities(classifier, inputs[split], hardware)) for split in ("test", "valid")
    )
    return classifier, test | {f"valid_{name}": valid[name] for name in ("accuracy", "macro_f1")}


def train(
    classifier: TurnClassifier,
    inputs: Sequence[Encoded],
    labels: Sequence[int],
    settings: TurnTraining,
    hardware: Hardware,
    seed: str,
    checkpoint: Path,
) -> None:
    """Train encoder and head by cross-entropy; leaves the model in eval mode, with the weights of the last epoch.

    Labels are not reweighted, so that the predicted probabilities follow the label shares of the training data.

    Args:
        classifier: its model is trained in place.
        inputs: N examples, of `encode`.
        labels: (N,) indices into `classifier.labels`.
        settings: hyperparameters.
        hardware: device and precision.
        seed: of order and dropout, as in `fit`.
        checkpoint: folder to resume from, as in `fit`.
    """
    model = classifier.model
    encoder = list(model["encoder"].parameters())
    head = [*model["dense"].parameters(), *model["out_proj"].parameters()]

    def loss(batch: list[int]) -> torch.Tensor:
        """Mean cross-entropy of a batch, given as indices of examples."""
        import torch
        from torch.nn.functional import cross_entropy

        values = logits(model, [inputs[i] for i in batch], settings.dropout)
        return cross_entropy(values.float(), torch.tensor([labels[i] for i in batch], device=values.device))

    fit(
        model,
        [(encoder, settings.learning_rate), (head, settings.head_learning_rate)],
        [len(encoded.ids) for encoded in inputs],
        loss,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        hardware=hardware,
        seed=seed,
        checkpoint=checkpoint,
    )


def quality(labels: Sequence[str], truth: Sequence[int], probabilities: Sequence[Sequence[float]]) -> dict[str, float]:
    """Quality of N predictions, in percent; all 0 for N = 0.

    Returns:
        `accuracy`, `macro_f1`, `f1_<label>`, `calibration_error`, and of the majority-class baseline
        `majority_accuracy` and `majority_macro_f1`.
    """
    predicted = [max(range(len(row)), key=row.__getitem__) for row in probabilities]
    baseline = majority(truth, len(labels))
    return {
        "accuracy": accuracy(truth, predicted),
        "macro_f1": macro_f1(truth, predicted),
        **{f"f1_{label.replace('-', '_')}": f1(truth, predicted, i) for i, label in enumerate(labels)},
        "calibration_error": calibration_error(truth, probabilities),
        "majority_accuracy": accuracy(truth, baseline),
        "majority_macro_f1": macro_f1(truth, baseline),
    }
