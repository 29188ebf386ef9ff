"""Collate examples of unequal length into padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

IGNORED = -100  # labels with this value have no loss (ignore_index of cross-entropy)


def pad_supervised(examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """Right-pad examples with `input_ids` and `labels` to (B, T) tensors input_ids, labels and attention_mask."""
    import torch

    longest = max(len(example["input_ids"]) for example in examples)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([example[key] + [value] * (longest - len(example[key])) for example in examples])

    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": padded("input_ids", pad_id), "labels": padded("labels", IGNORED), "attention_mask": mask}


def by_length(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Regroup the rows of an effective batch into as many micro-batches of similar length, with the least padding.

    A loss that is normalised by the tokens of the effective batch does not depend on how it is split.

    Args:
        batches: micro-batches of `pad_supervised`, of the same size except the last.

    Returns:
        Micro-batches, the longest rows first, each padded to its longest row. None has more positions, with
        padding, than a micro-batch of the longest rows would have at the old size.
    """
    import torch

    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
    order = lengths.argsort(descending=True, stable=True)
    sorted_lengths = lengths[order].tolist()
    sizes = cuts(sorted_lengths, len(batches), len(batches[0]["input_ids"]) * sorted_lengths[0])
    # The value of `input_ids` under padding has no effect, since the attention mask hides it.
    columns = {key: _concatenate(batches, key, IGNORED if key == "labels" else 0)[order] for key in batches[0]}
    longest = [int(lengths[part].max()) for part in order.split(sizes)]
    parts = {key: rows.split(sizes) for key, rows in columns.items()}
    return [{key: parts[key][i][:, :width] for key in parts} for i, width in enumerate(longest)]


def cuts(lengths: Sequence[int], parts: int, max_tokens: int) -> list[int]:
    """Cut rows into consecutive parts with the least padding, by dynamic programming over the number of parts.

    Args:
        lengths: N tokens of rows, in falling order.
        parts: number of parts.
        max_tokens: bound of rows x longest row of a part; at least one cut must satisfy it.

    Returns:
        The number of rows of each part.
    """
    # best[n]: for the first n rows in the parts so far, the fewest padded tokens and the sizes that give them.
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(parts):
        extended: dict[int, tuple[int, list[int]]] = {}
        for start, (tokens, sizes) in best.items():
            for end in range(start + 1, len(lengths) + 1):
                padded = (end - start) * lengths[start]
                if padded > max_tokens:
                    break
                if end not in extended or tokens + padded < extended[end][0]:
                    extended[end] = (tokens + padded, [*sizes, end - start])
        best = extended
    return best[len(lengths)][1]


def _concatenate(batches: Sequence[dict[str, Any]], key: str, value: int) -> Any:
    """The rows of all batches, right-padded with `value` to the widest batch."""
    import torch

    widest = max(batch[key].shape[1] for batch in batches)
    return torch.cat(
        [torch.nn.functional.pad(batch[key], (0, widest - batch[key].shape[1]), value=value) for batch in batches]
    )
