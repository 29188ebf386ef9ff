"""Disk of a run: the base model, the checkpoints of the stage that trains, and the outs of all that train.

Not counted: corpora, encoders, classifiers, replies and packages, some GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attune.runtime.sealed import KEPT
from attune.tools.memory.sizes import Size

if TYPE_CHECKING:
    from attune.config.schema import Params

# Bytes a second to which a checkpoint is written and then hashed, on a slow disk: an assumption.
SLOW_DISK = 300e6


@dataclass(frozen=True)
class Disk:
    """Bytes; `checkpoints` are those that are there at once, `outs` those of DVC's cache."""

    model: int
    checkpoint: int
    checkpoints: int
    outs: int

    @property
    def linked(self) -> int:
        """The sum where DVC links outs to its cache (`cache.type`)."""
        return self.model + self.checkpoints + self.outs

    @property
    def copied(self) -> int:
        """The sum where it copies them."""
        return self.linked + self.outs

    @property
    def seconds(self) -> float:
        """Seconds to write and hash a checkpoint on a slow disk, which a SIGTERM has to leave."""
        return self.checkpoint / SLOW_DISK


def disk(params: Params, whole: Size) -> Disk:
    """The disk of a run whose training stages run one after another.

    Args:
        params: of the run: its adapters and rounds.
        whole: of `sizes.size`, of all ranks together.
    """
    # FSDP writes the adapter a second time, in its own form.
    adapters = 2 if params.hardware.shards else 1
    checkpoint = adapters * whole.adapter + whole.optimizer
    # A round's out is its last checkpoint; the reference in it is the adapter of SFT, which the cache has once.
    outs = len(params.adapters) * whole.adapter + len(params.rounds) * checkpoint
    # A new checkpoint is whole before the oldest is removed.
    return Disk(2 * whole.parameters, checkpoint, (KEPT + 1) * checkpoint, outs)
