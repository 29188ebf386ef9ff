"""Batches of examples of unequal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

IGNORED = -100  # the label that the loss of transformers passes over


def pad_supervised(examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """Right-pad examples with `input_ids` and `labels` to (B, T) tensors input_ids, labels and attention_mask."""
    import torch

    longest = max(len(one["input_ids"]) for one in examples)

    def padded(key: str, filler: int) -> torch.Tensor:
        return torch.tensor([one[key] + [filler] * (longest - len(one[key])) for one in examples])

    lengths = torch.tensor([len(one["input_ids"]) for one in examples])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": padded("input_ids", pad_id), "labels": padded("labels", IGNORED), "attention_mask": mask}


def by_length(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of some batches dealt anew: as many batches of the same sizes, each of rows of similar length.

    Args:
        batches: of `pad_supervised`.

    Returns:
        The longest rows first, padded to the longest of their own batch.
    """
    import torch

    lengths = torch.cat([one["attention_mask"].sum(1) for one in batches])
    order = lengths.argsort(descending=True, stable=True)
    sizes = [len(one["input_ids"]) for one in batches]
    # What an input is where the mask hides it does not matter.
    columns = {key: _rows(batches, key, IGNORED if key == "labels" else 0)[order] for key in batches[0]}
    longest = [int(lengths[part].max()) for part in order.split(sizes)]
    parts = {key: rows.split(sizes) for key, rows in columns.items()}
    return [{key: parts[key][i][:, :width] for key in parts} for i, width in enumerate(longest)]


def _rows(batches: Sequence[dict[str, Any]], key: str, filler: int) -> Any:
    import torch

    widest = max(one[key].shape[1] for one in batches)
    return torch.cat(
        [torch.nn.functional.pad(one[key], (0, widest - one[key].shape[1]), value=filler) for one in batches]
    )


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: little padding, and a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    yield from (order[i : i + size] for i in range(0, len(order), size))
