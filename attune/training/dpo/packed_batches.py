"""Packed batches of pairs for TRL's trainer: what `pack` gives, what TRL's loss reads, and which pairs are real.

TRL reads the replies as (2 B, R), the B chosen ones first. On several ranks dummy pairs fill up the last batch of an
epoch; no loss and no logged value contains them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attune.compute.packed_mask import CONTEXT, PADDING
from attune.training.common.collate import IGNORED
from attune.training.common.packing import REPLY_KEYS, Document, pack
from attune.training.dpo.reference_logps import REFERENCE_KEYS

if TYPE_CHECKING:
    import torch

# Fills up the last batch of an epoch on several ranks.
DUMMY_PAIR = {
    "prompt_ids": [0],
    "chosen_ids": [0],
    "rejected_ids": [0],
}


def collate_pairs(
    pairs: Sequence[Mapping[str, Any]],
    pad_id: int,
    max_length: int,
    varlen: bool,
    reference: bool = True,
    contexts: bool = False,
) -> dict[str, torch.Tensor]:
    """A packed batch of B pairs, with what TRL's loss reads.

    Args:
        pairs: of `with_reference`, or of `encode_pair` without a reference.
        pad_id: token id of the padding.
        max_length: tokens of context and reply together; a longer reply is cut at its end, as in TRL.
        varlen: of `pack`.
        reference: whether the loss reads the reference's log-probabilities.
        contexts: whether it reads the log-probabilities of the contexts: `predictors` and `targets` then have B more
            rows, the tokens of each context from its second on.

    Returns:
        The tensors of `pack`, with the replies in the order all chosen, all rejected. `input_ids` and
        `completion_mask`, (2 B, 1 + R): the replies, after one position in place of the context. `attention_mask`,
        (G, L): 1 for a token and 0 for padding; TRL counts the tokens. With a reference `ref_chosen_logps` and
        `ref_rejected_logps`, (B,), in nats. `real`, (B,) booleans: false for `DUMMY_PAIR`.

    Raises:
        ValueError: a context leaves no room for a reply within `max_length`.
    """
    import torch
    from torch.nn.functional import pad

    documents = []
    for pair in pairs:
        room = max(max_length - len(pair["prompt_ids"]), 0)
        documents.append(Document(pair["prompt_ids"], [pair["chosen_ids"][:room], pair["rejected_ids"][:room]]))
    # Of a shared beginning a context would lack the log-probabilities.
    batch = pack(documents, pad_id, varlen, share=not contexts)
    # `pack` gives chosen, rejected, chosen, rejected, ...; TRL splits a batch into halves.
    for name in REPLY_KEYS:
        batch[name] = torch.cat([batch[name][0::2], batch[name][1::2]])
    in_reply = pad(batch["targets"] != IGNORED, (1, 0))
    replies = {
        "input_ids": pad(batch["targets"], (1, 0), value=pad_id).masked_fill(~in_reply, pad_id),
        "completion_mask": in_reply.long(),
        "attention_mask": (batch["packed_documents"] != PADDING).long(),
        "real": torch.tensor([pair != DUMMY_PAIR for pair in pairs]),
    }
    if contexts:
        batch |= _with_contexts(batch, pairs)
    if reference:
        for name in REFERENCE_KEYS:
            replies[name] = torch.tensor([pair.get(name, 0.0) for pair in pairs])
    return batch | replies


def _with_contexts(batch: Mapping[str, torch.Tensor], pairs: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """`predictors` and `targets` of a packed batch with the rows of the contexts after those of the replies."""
    import torch
    from torch.nn.functional import pad
    from torch.nn.utils.rnn import pad_sequence

    in_context = (batch["packed_segments"] == CONTEXT).flatten()
    documents, tokens = batch["packed_documents"].flatten(), batch["packed_ids"].flatten()
    indices = [(in_context & (documents == number)).nonzero()[:, 0] for number in range(len(pairs))]
    rows = {
        "predictors": pad_sequence([places[:-1] for places in indices], batch_first=True),
        "targets": pad_sequence([tokens[places[1:]] for places in indices], batch_first=True, padding_value=IGNORED),
    }
    longest = max(rows["targets"].shape[1], batch["targets"].shape[1])
    fillers = {"predictors": 0, "targets": IGNORED}
    return {
        name: torch.cat([pad(part, (0, longest - part.shape[1]), value=fillers[name]) for part in (batch[name], more)])
        for name, more in rows.items()
    }


def kept(real: torch.Tensor) -> torch.Tensor:
    """The pairs that the loss is computed of, (B,) booleans: the real ones.

    All of a micro-batch of dummies alone, whose loss `EffectiveBatch` multiplies by 0: every rank needs a gradient.
    """
    return real if bool(real.any()) else ~real


def likelihood_tokens(batch: Mapping[str, torch.Tensor], real: torch.Tensor) -> int:
    """The number of tokens of the chosen replies, and of the contexts if `targets` has them, of the real pairs."""
    rows = batch["targets"].unflatten(0, (-1, len(real)))
    return int((rows[[0, *range(2, len(rows))]] != IGNORED)[:, real].sum())


def rows_of(pairs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The rows (N, …) of these pairs, (B,) booleans: of the chosen replies, the rejected ones, and perhaps contexts."""
    return rows[pairs.repeat(len(rows) // len(pairs))]
