"""Preference pairs laid out in rows: each context once, the replies to it behind it.

    [context | chosen | rejected] [context | chosen | rejected] [padding]

A block is a context with its replies. A reply sees its context and itself; positions restart behind the context, so to
the model every reply stands where it would stand alone. The last token of a reply predicts nothing and is left out, and
the first token of every reply is predicted from the last position of the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from attune.training.common.collate import IGNORED

if TYPE_CHECKING:
    import torch

CONTEXT = 0  # the part of a block that all others see
PADDING = -1  # the block of what fills a row
# Tokens of a row at which masked attention costs as much as all else: by the profiler, a 15 M model on a CPU. A GPU,
# where alone rows are shared now, has not been measured.
ATTENTION_COSTS_AS_MUCH_AT = 450


@dataclass(frozen=True)
class Block:
    """A context of P >= 1 tokens and the replies to it, each of at least one token."""

    context: Sequence[int]
    replies: Sequence[Sequence[int]]

    def __len__(self) -> int:
        """Positions that it takes in a row."""
        return len(self.context) + sum(len(reply) - 1 for reply in self.replies)


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of blocks in rows of at most `capacity` tokens: first fit, the longest first.

    First fit decreasing needs at most 11/9 of the rows that are possible (Johnson 1974), and nearly none too many where
    most blocks are short beside the longest.

    Raises:
        ValueError: a block is longer than a row.
    """
    if max(lengths) > capacity:
        raise ValueError(f"a block of {max(lengths)} tokens does not fit into rows of {capacity}")
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, left in enumerate(room) if left >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def cheapest_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of blocks in rows of the capacity, from the longest block's upwards, that costs the least.

    Short rows waste padding, long ones attention between blocks that do not see each other.
    """
    longest = max(lengths)
    tried = (fill_rows(lengths, longest * (8 + step) // 8) for step in range(17))
    return min(tried, key=lambda rows: _cost(rows, lengths))


def _cost(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    length = max(sum(lengths[i] for i in row) for row in rows)
    return len(rows) * length * (1 + length / ATTENTION_COSTS_AS_MUCH_AT)


def pack(blocks: Sequence[Block], pad_id: int, one_row: bool) -> dict[str, torch.Tensor]:
    """The tensors of a batch of blocks; G is the number of rows, L their length, N the number of replies.

    Args:
        blocks: with the same number of replies each, or not.
        pad_id: fills rows.
        one_row: all blocks behind each other, for attention by block; else in the rows that cost least.

    Returns:
        `row_ids`, `row_positions`, `row_blocks`, `row_parts`: (G, L) token ids, positions, number of the block
        (`PADDING` where there is none) and part of the block (`CONTEXT`, or the number of the reply from 1).
        `predictors`: (N, R) the places in the flattened rows that predict a reply's tokens; R is the longest reply's
        length. `targets`: (N, R) those tokens, `IGNORED` where a reply has ended. Replies are in the order of the
        blocks.

    Raises:
        ValueError: a context or a reply is empty.
    """
    import torch

    if any(not block.context or not all(block.replies) for block in blocks):
        raise ValueError("an empty context or reply has no first token to predict, or nothing to predict it from")
    lengths = [len(block) for block in blocks]
    rows = [list(range(len(blocks)))] if one_row else cheapest_rows(lengths)
    length = max(sum(lengths[i] for i in row) for row in rows)
    filler = {"row_ids": pad_id, "row_positions": 0, "row_blocks": PADDING, "row_parts": CONTEXT}
    laid: dict[str, list[list[int]]] = {name: [] for name in filler}
    predictors: list[list[list[int]]] = [[] for _ in blocks]
    for number, row in enumerate(rows):
        line: dict[str, list[int]] = {name: [] for name in filler}
        for i in row:
            predictors[i] = _places(blocks[i], number * length + len(line["row_ids"]))
            _append(line, blocks[i], i)
        for name, values in line.items():
            laid[name].append(values + [filler[name]] * (length - len(values)))
    replies = [reply for block in blocks for reply in block.replies]
    return {name: torch.tensor(values) for name, values in laid.items()} | {
        "predictors": _padded([places for one in predictors for places in one], 0),
        "targets": _padded(replies, IGNORED),
    }


def _append(line: dict[str, list[int]], block: Block, number: int) -> None:
    start = len(block.context)
    line["row_ids"] += block.context
    line["row_positions"] += range(start)
    line["row_parts"] += [CONTEXT] * start
    for part, reply in enumerate(block.replies, start=1):
        line["row_ids"] += reply[:-1]
        line["row_positions"] += range(start, start + len(reply) - 1)
        line["row_parts"] += [part] * (len(reply) - 1)
    line["row_blocks"] += [number] * len(block)


def _places(block: Block, start: int) -> list[list[int]]:
    """Where in the flattened rows each reply's tokens are predicted, for a block that begins at `start`."""
    behind = start + len(block.context)
    begins = accumulate((len(reply) - 1 for reply in block.replies), initial=behind)
    return [
        [behind - 1, *range(begin, begin + len(reply) - 1)] for begin, reply in zip(begins, block.replies, strict=False)
    ]


def _padded(lists: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    import torch

    longest = max(map(len, lists))
    return torch.tensor([[*one, *[filler] * (longest - len(one))] for one in lists])


def visible(
    blocks: torch.Tensor, parts: torch.Tensor, positions: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """Which token sees which, (G, 1, L, L) boolean.

    Args:
        blocks: (G, L).
        parts: (G, L).
        positions: (G, L); a sliding window counts in them, since to a reply those before it are not there.
        window: tokens that a token sees, itself included; None: all before it.
    """
    import torch

    length = blocks.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=blocks.device).tril()
    same_block = blocks[:, :, None] == blocks[:, None, :]
    open_part = (parts == CONTEXT)[:, None, :] | (parts[:, :, None] == parts[:, None, :])
    seen = before & same_block & open_part
    if window is not None:
        seen &= positions[:, :, None] - positions[:, None, :] < window
    return seen[:, None]


def mask_function(blocks: torch.Tensor, parts: torch.Tensor, positions: torch.Tensor, window: int | None = None) -> Any:
    """The same as `visible` for FlexAttention, which asks place by place and skips what is empty."""

    def seen(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        found = (query >= key) & (blocks[row, query] == blocks[row, key])
        found = found & ((parts[row, key] == CONTEXT) | (parts[row, query] == parts[row, key]))
        if window is not None:
            found = found & (positions[row, query] - positions[row, key] < window)
        return found

    return seen
