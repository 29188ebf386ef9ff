"""Splits for corpora that were published without one: 70 % train, 15 % valid, 15 % test, by hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import accumulate

from attune.data.dialogue import SPLITS

# Ends of train and valid, in percent.
SHARES = (70, 85)


def text_hash(text: str) -> int:
    """A hash of the text, from 0 to 2**64 - 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_by_hash(text: str, shares: Mapping[str, int]) -> str:
    """A split, by a hash of the text alone: other texts do not move it.

    Args:
        text: such as a dialogue's id.
        shares: of the splits, in any unit.
    """
    place = text_hash(text) % sum(shares.values())
    for split, end in zip(shares, accumulate(shares.values()), strict=True):
        if place < end:
            return split
    raise AssertionError("the place is below the last end")


def split_groups(strata: Mapping[str, str]) -> dict[str, str]:
    """The split of every group, such as a video, a patient or a post, whose dialogues must be in one split.

    Within a stratum the groups are sorted by a hash of their names and cut at the shares. So the order of a file does
    not matter, and every split has groups of each stratum with seven or more. Adding groups can move others.

    Args:
        strata: group to stratum; the shares hold in each stratum.
    """
    splits = {}
    for stratum in sorted(set(strata.values())):
        groups = sorted((name for name in strata if strata[name] == stratum), key=lambda name: (text_hash(name), name))
        ends = [round(len(groups) * share / 100) for share in SHARES]
        for i, name in enumerate(groups):
            splits[name] = SPLITS[sum(i >= end for end in ends)]
    return splits
