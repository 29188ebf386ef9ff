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


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: little padding, and a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    yield from (order[i : i + size] for i in range(0, len(order), size))
