"""The split of a corpus that was published without one: 70 % train, 15 % valid, 15 % test, from hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from attune.data.dialogue import SPLITS

# Of 100 groups those below the first number are train, below the second valid.
SHARES = (70, 85)


def place(text: str) -> int:
    """A number from 0 to 2**64 - 1 that stands for the text on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_groups(strata: Mapping[str, str]) -> dict[str, str]:
    """The split of every group, which is what must not be torn apart: a video, a patient, a post.

    Within a stratum the groups are put in order of a hash of their names and cut at the shares, so that the order of a
    file does not matter, a small stratum is in every split from seven groups on, and a corpus of few groups does not
    lose a split to chance. Another set of groups may move some of them.

    Args:
        strata: of each group its stratum, in which the shares hold.
    """
    found = {}
    for stratum in sorted(set(strata.values())):
        groups = sorted((name for name in strata if strata[name] == stratum), key=lambda name: (place(name), name))
        ends = [round(len(groups) * share / 100) for share in SHARES]
        for i, name in enumerate(groups):
            found[name] = SPLITS[sum(i >= end for end in ends)]
    return found
