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
    """The rows of some batches dealt anew into as many, each of rows of similar length, with the least padding.

    Args:
        batches: of `pad_supervised`.

    Returns:
        The longest rows first, padded to the longest of their own batch. Short rows share a batch with more of their
        kind, but none holds more tokens than the largest of `batches` would with the longest rows.
    """
    import torch

    lengths = torch.cat([one["attention_mask"].sum(1) for one in batches])
    order = lengths.argsort(descending=True, stable=True)
    sizes = cuts(lengths[order].tolist(), len(batches), max(len(one["input_ids"]) for one in batches))
    # What an input is where the mask hides it does not matter.
    columns = {key: _rows(batches, key, IGNORED if key == "labels" else 0)[order] for key in batches[0]}
    longest = [int(lengths[part].max()) for part in order.split(sizes)]
    parts = {key: rows.split(sizes) for key, rows in columns.items()}
    return [{key: parts[key][i][:, :width] for key in parts} for i, width in enumerate(longest)]


def cuts(lengths: Sequence[int], parts: int, rows: int) -> list[int]:
    """How many of `lengths`, which descend, go into each of `parts` batches, so that padding is least.

    No batch holds more tokens, padding included, than `rows` of the longest do; `parts * rows` are enough for all.
    """
    import torch

    count = len(lengths)
    longest = torch.tensor([*lengths, 0], dtype=torch.float64)
    size = torch.arange(count + 1) - torch.arange(count + 1)[:, None]
    # Tokens of a batch from one row (first index) up to another, and the least of all batches up to a row.
    tokens = (size * longest[:, None]).masked_fill(size <= 0, torch.inf)
    tokens[tokens > rows * lengths[0]] = torch.inf
    least = torch.full((count + 1,), torch.inf, dtype=torch.float64)
    least[0] = 0
    starts = []
    for _ in range(parts):
        least, start = (least[:, None] + tokens).min(0)
        starts.append(start)
    found, end = [], count
    for start in reversed(starts):
        found.append(end - int(start[end]))
        end = int(start[end])
    return found[::-1]


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
