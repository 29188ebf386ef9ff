"""Distribute the examples of an epoch over ranks so that the effective batches are those of a single process.

Accelerate gives the micro-batches of one shuffled order to the ranks in turn, so that the ranks together have an
effective batch of a single process. It completes the last batch of an epoch with examples from the epoch's beginning,
which would be trained on twice. Here dummy examples, which are left out of the loss, complete it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attune.runtime.distributed import all_reduce_sum, world_size

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader


def shared_loader(trainer: Any, dummy: Any) -> DataLoader[Any]:
    """The data loader of a rank's share of the trainer's examples.

    Args:
        trainer: transformers' `Trainer` of this rank; there are several ranks.
        dummy: an example that the loss leaves out, in the format of the others.
    """
    import torch
    from accelerate.data_loader import SeedableRandomSampler

    examples, batch_size = trainer.train_dataset, trainer._train_batch_size * trainer.args.world_size

    class WithDummy(torch.utils.data.Dataset[Any]):
        """The examples; every index after the last example gives the dummy."""

        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, index: int) -> Any:
            return examples[index] if index < len(examples) else dummy

    class CompletedOrder(torch.utils.data.Sampler[int]):
        """Accelerate's order for a single process, then dummies until every rank has full micro-batches."""

        # Seeded by torch's initial seed, which transformers has set when it calls for the loader.
        order = SeedableRandomSampler(range(len(examples)))

        def __len__(self) -> int:
            return -(-len(examples) // batch_size) * batch_size

        def __iter__(self) -> Iterator[int]:
            yield from self.order
            yield from [len(examples)] * (len(self) - len(examples))

        def set_epoch(self, epoch: int) -> None:
            self.order.set_epoch(epoch)

    return trainer._get_dataloader(
        dataset=WithDummy(),
        description="Training",
        batch_size=trainer._train_batch_size,
        sampler_fn=lambda _: CompletedOrder(),
        is_training=True,
    )


class EffectiveBatch:
    """Give every example of an effective batch the same weight in loss and metrics.

    TRL takes the mean over a micro-batch, transformers the mean over the micro-batches, and DDP the mean over the
    ranks, so that an example has more weight in a smaller micro-batch, as at the end of an epoch.
    """

    def __init__(self) -> None:
        # Over all ranks: the examples, tokens and micro-batches of the effective batch, and the examples of each
        # micro-batch that is done.
        self._examples, self._tokens, self._micro_batches, self._done = 0, 0, 0, list[int]()

    def begin(self, real: Sequence[torch.Tensor], tokens: int = 0) -> None:
        """Begin an effective batch.

        Args:
            real: for each micro-batch of this rank, (B,) booleans; false for a dummy.
            tokens: of the real examples of this rank, for `token_share`.
        """
        self._examples = all_reduce_sum(sum(int(mask.sum()) for mask in real))
        self._tokens = all_reduce_sum(tokens)
        self._micro_batches = len(real) * world_size()

    def token_share(self, tokens: int, examples: int) -> float:
        """The factor with which a mean over the tokens of a part becomes one in which every token has equal weight.

        Of a loss that is a mean over tokens, that is: with it, `rescale_loss` and `record_metrics`, which weight parts
        by their examples, give the mean over the tokens of the effective batch.

        Args:
            tokens: of the part, a micro-batch on this rank or on all.
            examples: of the part, without dummies.
        """
        return tokens / self._tokens * (self._examples / examples) if self._tokens and examples else 1.0

    def record_metrics(self, real: torch.Tensor, metrics: Mapping[str, list[float]]) -> None:
        """Count a finished micro-batch; after the last, average the metrics of the effective batch by example.

        TRL logs the mean of the values in `metrics`. Each value of the effective batch is replaced by their mean
        weighted by examples, so that TRL's mean is that over the examples.

        Args:
            real: of the micro-batch, as in `begin`.
            metrics: a value for each micro-batch so far, which is a mean over its examples; except `num_tokens`.
        """
        self._done.append(all_reduce_sum(int(real.sum())))
        if sum(self._done) < self._examples:
            return
        weights, self._done = self._done, []
        for name, values in metrics.items():
            if name != "num_tokens" and len(weights) > 1:
                weighted = zip(values[-len(weights) :], weights, strict=True)
                values[-len(weights) :] = [sum(value * weight for value, weight in weighted) / sum(weights)]

    def rescale_loss(self, mean: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Rescale the loss of a micro-batch so that the mean over micro-batches and ranks is that over the examples.

        With B real examples in the micro-batch, M micro-batches and N examples in the effective batch:

            loss = mean * B * M / N

        A micro-batch of dummies alone has the loss and gradient 0.

        Args:
            mean: over the real examples of the micro-batch; where there is none, any finite value with a gradient.
            real: of the micro-batch, as in `begin`.
        """
        examples = int(real.sum())
        if examples == len(real) and examples * self._micro_batches in (self._examples, 0):
            return mean
        return mean * examples * (self._micro_batches / self._examples)
