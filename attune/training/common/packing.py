"""Contexts and replies packed into sequences, with a context as the shared prefix of its replies.

    document   [ context | chosen | rejected ]        segments 0, 1, 2
    sequence   [ document ][ document ][ padding ]

A reply attends to its context and to itself (`attune.compute.packed_mask`), and its position ids continue those of the
context. So the model computes for every reply what it would compute for context and reply alone, and computes the
context once.

The first token of each reply is predicted at the last token of the context. The last token of a reply predicts nothing
and is left out of the sequence.

Where attention runs per document, on a CPU, the tokens that all contexts begin with, such as the system prompt, stand
once at the beginning of the sequence, as a document of their own that all others attend to:

    sequence   [ beginning ][ rest of a context | chosen | rejected ][ rest | chosen | rejected ]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from attune.compute.packed_mask import CONTEXT, PADDING
from attune.compute.prefix_cache import common_prefix
from attune.training.common.collate import IGNORED

if TYPE_CHECKING:
    import torch

# The packed sequences of a batch, (G, L) each, and the indices and targets of the replies, (N, R) each.
PACKED_KEYS = ("packed_ids", "packed_positions", "packed_documents", "packed_segments")
REPLY_KEYS = ("predictors", "targets")
SHARED = -2  # the document number of the tokens that all contexts begin with
# The sequence length at which masked attention costs as much as all else: profiled with a 15 M model on a CPU. Only a
# GPU uses it now (a CPU attends per document), and there it has not been measured.
ATTENTION_EQUALS_REST_AT = 450


@dataclass(frozen=True)
class Document:
    """A context of P >= 1 tokens and the replies to it, each of at least one token."""

    context: Sequence[int]
    replies: Sequence[Sequence[int]]

    def __len__(self) -> int:
        """The number of tokens in the packed sequence."""
        return len(self.context) + sum(len(reply) - 1 for reply in self.replies)


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack documents into sequences of at most `capacity` tokens: the longest first, each where it first fits.

    Needs at most 11/9 of the optimal number of sequences plus a constant (Johnson et al. 1974), and nearly the optimal
    number where most documents are short compared with the longest.

    Args:
        lengths: tokens of each document.
        capacity: tokens of a sequence.

    Returns:
        The indices of the documents in each sequence.

    Raises:
        ValueError: a document is longer than a sequence.
    """
    if max(lengths) > capacity:
        raise ValueError(f"a document of {max(lengths)} tokens does not fit into sequences of {capacity}")
    sequences: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        first = next((s for s, left in enumerate(room) if left >= lengths[i]), len(sequences))
        if first == len(sequences):
            sequences.append([])
            room.append(capacity)
        sequences[first].append(i)
        room[first] -= lengths[i]
    return sequences


def cheapest_packing(lengths: Sequence[int]) -> list[list[int]]:
    """The packing of least estimated cost among capacities from 1 to 3 times the longest document.

    Short sequences waste padding; long ones waste attention between documents that are masked from each other.

    Args:
        lengths: tokens of each document.

    Returns:
        The indices of the documents in each sequence.
    """
    longest = max(lengths)
    packings = (first_fit_decreasing(lengths, longest * (8 + step) // 8) for step in range(17))
    return min(packings, key=lambda sequences: _cost(sequences, lengths))


def _cost(sequences: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """In units of a token without attention: G L (1 + L / L0), as attention grows with the square of the length."""
    length = max(sum(lengths[i] for i in sequence) for sequence in sequences)
    return len(sequences) * length * (1 + length / ATTENTION_EQUALS_REST_AT)


def pack(documents: Sequence[Document], pad_id: int, varlen: bool, share: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a batch: G packed sequences of length L, N replies of at most R tokens.

    Args:
        documents: they may have unequal numbers of replies.
        pad_id: token id of the padding.
        varlen: pack all documents into one sequence without padding, for attention per document; else into the
            sequences of `cheapest_packing`.
        share: with `varlen`, take the tokens that all contexts begin with once.

    Returns:
        `packed_ids`, `packed_positions`, `packed_documents`, `packed_segments`: (G, L) token ids, position ids,
        document numbers (`PADDING` for padding, `SHARED` for the common beginning) and segment numbers (`CONTEXT`, or
        the number of the reply from 1).
        `predictors`: (N, R) indices into the flattened sequences, where the tokens of a reply are predicted.
        `targets`: (N, R) those tokens, and `IGNORED` after the end of a reply. Replies are in the order of `documents`.

    Raises:
        ValueError: a context or a reply is empty.
    """
    import torch

    if any(not document.context or not all(document.replies) for document in documents):
        raise ValueError("an empty context or reply has no first token to predict, or nothing to predict it from")
    # Of each context at least the last token is left: it predicts the replies.
    alone = not (varlen and share) or len(documents) == 1
    shared = 0 if alone else common_prefix([document.context for document in documents])
    rests = [Document(document.context[shared:], document.replies) for document in documents]
    lengths = [len(rest) for rest in rests]
    sequences = [list(range(len(documents)))] if varlen else cheapest_packing(lengths)
    length = shared + max(sum(lengths[i] for i in sequence) for sequence in sequences)
    padding = dict(zip(PACKED_KEYS, (pad_id, 0, PADDING, CONTEXT), strict=True))
    packed: dict[str, list[list[int]]] = {key: [] for key in PACKED_KEYS}
    predictors: list[list[list[int]]] = [[] for _ in documents]
    for number, sequence in enumerate(sequences):
        tokens: dict[str, list[int]] = {key: [] for key in PACKED_KEYS}
        _append(tokens, Document(documents[0].context[:shared], ()), SHARED, 0)
        for i in sequence:
            predictors[i] = _predictors(rests[i], number * length + len(tokens["packed_ids"]))
            _append(tokens, rests[i], i, shared)
        for key, values in tokens.items():
            packed[key].append(values + [padding[key]] * (length - len(values)))
    replies = [reply for document in documents for reply in document.replies]
    return {key: torch.tensor(values) for key, values in packed.items()} | {
        "predictors": _padded([indices for of_document in predictors for indices in of_document], 0),
        "targets": _padded(replies, IGNORED),
    }


def _append(tokens: dict[str, list[int]], document: Document, number: int, position: int) -> None:
    """Add a document, whose first token is at `position`, to the four lists of a sequence."""
    context_length = len(document.context)
    context_end = position + context_length
    tokens["packed_ids"] += document.context
    tokens["packed_positions"] += range(position, context_end)
    tokens["packed_segments"] += [CONTEXT] * context_length
    for segment, reply in enumerate(document.replies, start=1):
        tokens["packed_ids"] += reply[:-1]
        tokens["packed_positions"] += range(context_end, context_end + len(reply) - 1)
        tokens["packed_segments"] += [segment] * (len(reply) - 1)
    tokens["packed_documents"] += [number] * len(document)


def _predictors(document: Document, start: int) -> list[list[int]]:
    """For each reply the indices that predict its tokens, if the document begins at index `start`."""
    context_end = start + len(document.context)
    reply_starts = accumulate((len(reply) - 1 for reply in document.replies), initial=context_end)
    return [
        [context_end - 1, *range(reply_start, reply_start + len(reply) - 1)]
        for reply_start, reply in zip(reply_starts, document.replies, strict=False)
    ]


def _padded(lists: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    import torch

    longest = max(map(len, lists))
    return torch.tensor([[*values, *[filler] * (longest - len(values))] for values in lists])
