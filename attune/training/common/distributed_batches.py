"""How the examples of an epoch are dealt to several ranks: the effective batches are those of one process.

Accelerate deals the micro-batches of one order out in turn, so that the ranks together have an effective batch of one
process. What is left at the end of an epoch it fills up with examples from its beginning, which would be learned from
twice; here stands a filler instead, an example of which nothing is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attune.runtime.distributed import all_reduce_sum, world_size

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader


def shared_loader(trainer: Any, filler: Any) -> DataLoader[Any]:
    """The data loader of a rank's share of the trainer's examples.

    Args:
        trainer: transformers' `Trainer`, in one of several ranks.
        filler: an example in the form of the others.
    """
    import torch
    from accelerate.data_loader import SeedableRandomSampler

    examples, whole = trainer.train_dataset, trainer._train_batch_size * trainer.args.world_size

    class Filled(torch.utils.data.Dataset[Any]):
        """The examples, and the filler behind the last."""

        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, index: int) -> Any:
            return examples[index] if index < len(examples) else filler

    class FilledOrder(torch.utils.data.Sampler[int]):
        """The order that accelerate gives one process, and as many fillers as make whole batches for all ranks."""

        # Of its initial seed: that which transformers has set when it asks for the loader.
        order = SeedableRandomSampler(range(len(examples)))

        def __len__(self) -> int:
            return -(-len(examples) // whole) * whole

        def __iter__(self) -> Iterator[int]:
            yield from self.order
            yield from [len(examples)] * (len(self) - len(examples))

        def set_epoch(self, epoch: int) -> None:
            self.order.set_epoch(epoch)

    return trainer._get_dataloader(
        dataset=Filled(),
        description="Training",
        batch_size=trainer._train_batch_size,
        sampler_fn=lambda _: FilledOrder(),
        is_training=True,
    )


class EffectiveBatch:
    """What an example weighs in an effective batch: as much as any other.

    TRL takes the mean over a micro-batch, transformers that over the micro-batches, and DDP that over the ranks: an
    example weighs more in a micro-batch that the end of an epoch has left small.
    """

    def __init__(self) -> None:
        # Of all ranks: examples and micro-batches, and the examples of each micro-batch that is done.
        self._examples, self._parts, self._done = 0, 0, list[int]()

    def begin(self, real: Sequence[torch.Tensor]) -> None:
        """Begin with another one.

        Args:
            real: of each micro-batch of this rank, (B,) booleans; false for a filler.
        """
        self._examples = all_reduce_sum(sum(int(one.sum()) for one in real))
        self._parts = len(real) * world_size()

    def note(self, real: torch.Tensor, metrics: Mapping[str, list[float]]) -> None:
        """Take note of a micro-batch; behind the last, put the mean over the examples in the place of each one's mean.

        Args:
            real: of the micro-batch, as in `begin`.
            metrics: a value of each micro-batch so far, which is a mean over its examples; `num_tokens` is none.
        """
        self._done.append(all_reduce_sum(int(real.sum())))
        if sum(self._done) < self._examples:
            return
        weights, self._done = self._done, []
        for name, values in metrics.items():
            if name != "num_tokens" and len(weights) > 1:
                noted = zip(values[-len(weights) :], weights, strict=True)
                values[-len(weights) :] = [sum(value * weight for value, weight in noted) / sum(weights)]

    def weighed(self, mean: torch.Tensor, real: torch.Tensor, filler: float) -> torch.Tensor:
        """The loss of a micro-batch, such that the mean over micro-batches and ranks is that over the examples.

        Args:
            mean: over the micro-batch, fillers included.
            real: of the micro-batch, as in `begin`.
            filler: the loss of a filler.
        """
        fillers = int((~real).sum())
        if not fillers and len(real) * self._parts in (self._examples, 0):
            return mean
        return (mean * len(real) - fillers * filler) * (self._parts / self._examples)
