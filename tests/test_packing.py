"""Documents in packed sequences: their layout, and which token attends to which."""

import math

import pytest
import torch
from dpo_models import PAIRS
from torch.nn.attention.flex_attention import create_mask

from attune.compute.packed_mask import packed_mask, packed_mask_mod
from attune.training.common.packing import SHARED, Document, cheapest_packing, first_fit_decreasing, pack


def structure(batch):
    return batch["packed_documents"], batch["packed_segments"], batch["packed_positions"]


def test_packing_is_a_partition_and_wastes_little():
    lengths = [90, 40, 35, 30, 30, 25, 20, 20, 10, 5]
    for sequences in (first_fit_decreasing(lengths, 90), cheapest_packing(lengths)):
        assert sorted(i for sequence in sequences for i in sequence) == list(range(10))
    packed = first_fit_decreasing(lengths, 90)
    assert max(sum(lengths[i] for i in sequence) for sequence in packed) <= 90
    assert len(packed) == math.ceil(sum(lengths) / 90)
    with pytest.raises(ValueError, match="91 tokens does not fit into sequences of 90"):
        first_fit_decreasing([91, 3], 90)


def test_layout_of_a_pair():
    batch = pack([Document([5, 6, 7], [[8, 9, 2], [10, 2]])], pad_id=0, varlen=True)
    assert batch["packed_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch["packed_positions"].tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch["packed_segments"].tolist() == [[0, 0, 0, 1, 1, 2]]
    assert batch["predictors"].tolist() == [[2, 3, 4], [2, 5, 0]]
    assert batch["targets"].tolist() == [[8, 9, 2], [10, 2, -100]]
    with pytest.raises(ValueError, match="empty context or reply"):
        pack([Document([], [[1], [2]])], pad_id=0, varlen=False)


@pytest.mark.parametrize("window", [None, 3])
def test_flex_mask_equals_dense_mask(window):
    documents = [Document(pair["prompt_ids"], [pair["chosen_ids"], pair["rejected_ids"]]) for pair in PAIRS]
    packed = structure(pack(documents, pad_id=0, varlen=False))
    sequences, length = packed[0].shape
    assert sequences < len(PAIRS)
    flex = create_mask(packed_mask_mod(*packed, window), sequences, 1, length, length, device="cpu")
    assert torch.equal(flex, packed_mask(*packed, window))


def test_window_counts_positions():
    batch = pack([Document([5, 6, 7, 8], [[9, 10, 11, 12, 2], [13, 14, 2]])], pad_id=0, varlen=True)
    mask = packed_mask(*structure(batch), window=3)[0, 0]
    # The first token of the rejected reply (index 8, position 4) sees positions 2 and 3 of the context and itself.
    assert mask[8].nonzero().flatten().tolist() == [2, 3, 8]


def test_contexts_share_their_beginning():
    """The system prompt stands once; the last token of a context, which predicts its replies, is not shared."""
    documents = [Document([5, 6, 7], [[8, 9, 2]]), Document([5, 6], [[10, 2]]), Document([5, 6, 9], [[11, 2], [2]])]
    batch = pack(documents, pad_id=0, varlen=True)
    assert batch["packed_ids"].tolist() == [[5, 6, 7, 8, 9, 6, 10, 6, 9, 11]]
    assert batch["packed_positions"].tolist() == [[0, 1, 2, 3, 4, 1, 2, 1, 2, 3]]
    assert batch["packed_documents"].tolist() == [[SHARED, 0, 0, 0, 0, 1, 1, 2, 2, 2]]
    assert batch["packed_segments"].tolist() == [[0, 0, 0, 1, 1, 0, 1, 0, 0, 1]]
    assert batch["predictors"].tolist() == [[2, 3, 4], [5, 6, 0], [8, 9, 0], [8, 0, 0]]
    for same in (pack(documents, 0, varlen=True, share=False), pack(documents[:1], 0, varlen=True)):
        assert SHARED not in same["packed_documents"]
