"""Which token attends to which in packed sequences whose documents share a prefix.

A packed sequence holds several documents; a document is a context, which is segment 0, and the replies to it, segments
1, 2, ... (prefix sharing). With document d, segment s and position p of each token, query i attends to key j if

    j <= i,  d(j) = d(i),  s(j) in {0, s(i)}  and, with a sliding window w,  p(i) - p(j) < w.

So a reply sees its context and itself, and never another reply or another document.

Here G is the number of packed sequences and L their length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CONTEXT = 0  # the segment that all segments of a document attend to
PADDING = -1  # the document number of padding tokens


def packed_mask(
    documents: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """The dense mask, (G, 1, L, L) booleans, true where the query (third axis) attends to the key (fourth axis).

    Args:
        documents: (G, L) document numbers, `PADDING` for padding.
        segments: (G, L) segment numbers.
        positions: (G, L) position ids. The window is measured in them and not in indices, because the tokens of an
            earlier reply lie between a reply and its context in the packed sequence, but not in the text.
        window: the number of tokens that a token attends to, itself included; None for all before it.
    """
    import torch

    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    same_document = documents[:, :, None] == documents[:, None, :]
    context_or_same_segment = (segments == CONTEXT)[:, None, :] | (segments[:, :, None] == segments[:, None, :])
    mask = causal & same_document & context_or_same_segment
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    return mask[:, None]


def packed_mask_mod(
    documents: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor, window: int | None = None
) -> Any:
    """`packed_mask` as a `mask_mod` of FlexAttention, which evaluates it per index and skips empty tiles.

    Args:
        documents: as in `packed_mask`.
        segments: as in `packed_mask`.
        positions: as in `packed_mask`.
        window: as in `packed_mask`.

    Returns:
        The function (sequence, head, query, key) -> boolean that `create_block_mask` takes.
    """

    def mask_mod(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """True where `query` may attend to `key`; all arguments are indices."""
        mask = (query >= key) & (documents[row, query] == documents[row, key])
        mask = mask & ((segments[row, key] == CONTEXT) | (segments[row, query] == segments[row, key]))
        if window is not None:
            mask = mask & (positions[row, query] - positions[row, key] < window)
        return mask

    return mask_mod
