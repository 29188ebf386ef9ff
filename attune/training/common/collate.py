"""Batches of examples of unequal length."""

from __future__ import annotations

from collections.abc import Sequence
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
    """The rows of some batches dealt anew: as many batches, each of rows of similar length, with the least padding.

    A loss that is divided by the tokens of all batches does not depend on where they are cut.

    Args:
        batches: of `pad_supervised`, of the same size but for the last.

    Returns:
        The longest rows first, padded to the longest of their own batch. None is larger, rows x positions, than the
        first of equal batches would be.
    """
    import torch

    lengths = torch.cat([one["attention_mask"].sum(1) for one in batches])
    order = lengths.argsort(descending=True, stable=True)
    falling = lengths[order].tolist()
    sizes = cuts(falling, len(batches), len(batches[0]["input_ids"]) * falling[0])
    # What an input is where the mask hides it does not matter.
    columns = {key: _rows(batches, key, IGNORED if key == "labels" else 0)[order] for key in batches[0]}
    longest = [int(lengths[part].max()) for part in order.split(sizes)]
    parts = {key: rows.split(sizes) for key, rows in columns.items()}
    return [{key: parts[key][i][:, :width] for key in parts} for i, width in enumerate(longest)]


def cuts(lengths: Sequence[int], parts: int, most: int) -> list[int]:
    """Sizes of the consecutive parts of falling `lengths` that together have the least padding.

    Args:
        lengths: N tokens of rows, the longest first.
        parts: how many.
        most: rows x longest row of any part; the sizes of some cut must keep to it.
    """
    # Rows that are dealt, in the number of parts so far: their padded tokens and the parts' sizes.
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(parts):
        longer: dict[int, tuple[int, list[int]]] = {}
        for start, (tokens, sizes) in best.items():
            for end in range(start + 1, len(lengths) + 1):
                padded = (end - start) * lengths[start]
                if padded > most:
                    break
                if end not in longer or tokens + padded < longer[end][0]:
                    longer[end] = (tokens + padded, [*sizes, end - start])
        best = longer
    return best[len(lengths)][1]


def _rows(batches: Sequence[dict[str, Any]], key: str, filler: int) -> Any:
    import torch

    widest = max(one[key].shape[1] for one in batches)
    return torch.cat(
        [torch.nn.functional.pad(one[key], (0, widest - one[key].shape[1]), value=filler) for one in batches]
    )
