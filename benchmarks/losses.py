"""Pairs a second of DPO with each loss, against TRL's trainer with that loss.

    python -m benchmarks.losses                  # sigmoid, about 2 minutes on two cores
    python -m benchmarks.losses sigmoid ipo      # a loss is a case
    python -m benchmarks.losses all              # about half an hour

SmolLM2-135M-Instruct, one epoch of EmPO's pairs, 8 a step and round. As in `benchmarks.dpo`: same model, adapter,
batch, optimizer, precision and process, TRL's reference live in every step, our time with the reference's
log-probabilities.
The losses without a reference are those of TRL's `CPOTrainer` and `ORPOTrainer`, which tokenise texts themselves: they
get the texts of the pairs, a few special tokens more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attune.config.sections.preference_losses import LOSSES
from benchmarks import dpo, measure
from benchmarks.dpo import Pair

# A single step; aot sorts the pairs of a batch, which must be one micro-batch.
BATCH = 8


@dataclass(frozen=True)
class Case(dpo.Case):
    """A loss."""

    loss: str = LOSSES[0]


CASES = {loss: Case(BATCH, BATCH, ("trl",), loss=loss) for loss in LOSSES}


class Sides(dpo.Sides):
    """Each side makes a function that trains on the pairs of a round."""

    def __init__(self, setting: measure.Setting, case: Case) -> None:
        super().__init__(setting, case)
        usual = {"loss_weights": None, "sft_weight": 0.0, "label_smoothing": None, "discopop_tau": None,
                 "simpo_gamma": None, "ld_alpha": None, "f_divergence": "reverse_kl", "f_alpha": None}  # fmt: skip
        self.dpo = replace(self.dpo, loss=case.loss, **usual)

    def trl(self, pairs: Sequence[Pair]) -> Callable[[], float]:
        """TRL's trainer of the loss."""
        if self.dpo.has_reference:
            return self.live(pairs)
        from datasets import Dataset
        from trl.experimental.cpo import CPOConfig, CPOTrainer
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        names = {"prompt": "prompt_ids", "chosen": "chosen_ids", "rejected": "rejected_ids"}
        rows = Dataset.from_list([{name: self.tokenizer.decode(p[ids]) for name, ids in names.items()} for p in pairs])
        policy = self.policy()

        def train() -> float:
            with tempfile.TemporaryDirectory() as folder:
                common = {"beta": self.dpo.beta, "max_length": self.max_length, **self.arguments(self.dpo, folder)}
                kind: Any = ORPOTrainer
                config: Any = ORPOConfig(**common)
                if self.dpo.loss == "simpo":
                    gamma = self.dpo.of_loss("simpo_gamma")
                    kind, config = CPOTrainer, CPOConfig(**common, loss_type="simpo", simpo_gamma=gamma, cpo_alpha=0.0)
                return measure.timed(
                    kind(model=policy, args=config, train_dataset=rows, processing_class=self.tokenizer)
                )()

        return train


def measured(setting: measure.Setting, case: Case) -> dict[str, Any]:
    """The figures of a loss."""
    sides, (pairs, source) = Sides(setting, case), dpo.pairs_of(setting, case)
    parts = measure.in_rounds(pairs[:: dpo.EPOCHS], case.batch, case.pairs)
    makers = {"ours": sides.ours, "trl": sides.trl}
    found = measure.compare(makers, parts, "pairs", dpo.tokens_of, setting.params.hardware.precision)
    return {**found, "model": case.model, "data": source}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    measure.run("losses", __doc__, CASES, measured, argv=argv)


if __name__ == "__main__":
    main()
