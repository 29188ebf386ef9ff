"""How the examples of an epoch are dealt to several ranks: the effective batches are those of one process.

Accelerate deals the micro-batches of one order out in turn, so that the ranks together have an effective batch of one
process. What is left at the end of an epoch it fills up with examples from its beginning, which would be learned from
twice; here stands a filler instead, an example of which nothing is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
