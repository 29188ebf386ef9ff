"""Pairs a second of DPO with each loss, against TRL's trainer with that loss.

    python -m benchmarks.losses

The architecture of SmolLM2-135M with random weights, EmPO's pairs of EmpatheticDialogues (below CORPORA_DIR, else of
the embedded sample) in the tiny tokenizer's tokens, one epoch. As in `benchmarks.dpo`: same model, adapter, batch,
optimizer, precision and process, TRL's reference live in every step, our time with the reference's log-probabilities.
The losses without a reference are those of TRL's `CPOTrainer` and `ORPOTrainer`, which tokenise texts themselves: they
get the texts of the pairs, a few special tokens more.

The headline is the sigmoid. `over_sigmoid` of a loss is its ratio over the sigmoid's: below 1, packing gains less.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from attune.config.schema import Params
from attune.config.sections.preference_losses import LOSSES
from benchmarks import measure
from benchmarks.dpo import EPOCHS, MAX_LENGTH, POSITIONS, Case, Pairs, set_up

RESULT = "losses"
PEER = "TRL's trainer of the loss"
# Pairs of a round, a single step: TRL needs seconds for each.
BATCH = 8
# Shape of SmolLM2-135M (Llama architecture).
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": True,
}


class LossCase(Case):
    """A loss: each side makes a function that trains on some of the pairs."""

    def __init__(self, tokenizer: Any, pairs: Pairs, params: Params, loss: str, shape: dict[str, Any]) -> None:
        super().__init__(tokenizer, "", pairs, BATCH, params)
        usual = {"loss_weights": None, "sft_weight": 0.0, "label_smoothing": None, "discopop_tau": None,
                 "simpo_gamma": None, "ld_alpha": None, "f_divergence": "reverse_kl", "f_alpha": None}  # fmt: skip
        self.dpo = replace(self.dpo, loss=loss, **usual)
        # aot sorts the pairs of a batch, which must be one micro-batch.
        self.hardware = replace(self.hardware, micro_batch_size=BATCH)
        self.share, self.shape = BATCH, shape

    def model(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM, set_seed

        set_seed(self.params.seed)
        ids = {f"{name}_token_id": getattr(self.tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        return LlamaForCausalLM(LlamaConfig(**self.shape, **ids))

    def trainer(self, kind: Any, policy: Any, rows: Any, folder: str, **changes: Any) -> Any:
        from datasets import Dataset
        from trl.trainer.dpo_config import DPOConfig

        from attune.training.dpo.trl_losses import config_arguments

        config = DPOConfig(
            max_length=MAX_LENGTH, **config_arguments(self.dpo), **changes, **self.arguments(self.dpo, folder)
        )
        return kind(model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=self.tokenizer)

    def ours(self, pairs: Pairs) -> Callable[[], float]:
        from attune.training.dpo.packed_forward import prepare
        from attune.training.dpo.packed_trainer import trainer_classes

        if self.dpo.has_reference:
            return super().ours(pairs)
        policy = self.policy()

        def train() -> float:
            with tempfile.TemporaryDirectory() as folder:
                prepare(policy, self.hardware, MAX_LENGTH)
                kind = partial(trainer_classes()[2], self.dpo)
                return measure.timed(self.trainer(kind, policy, pairs, folder))()

        return train

    def trl(self, pairs: Pairs) -> Callable[[], float]:
        """TRL's trainer of the loss."""
        if self.dpo.has_reference:
            return self.live(pairs)
        from datasets import Dataset
        from trl.experimental.cpo import CPOConfig, CPOTrainer
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        names = {"prompt": "prompt_ids", "chosen": "chosen_ids", "rejected": "rejected_ids"}
        texts = [{name: self.tokenizer.decode(pair[ids]) for name, ids in names.items()} for pair in pairs]
        policy = self.policy()

        def train() -> float:
            with tempfile.TemporaryDirectory() as folder:
                common: dict[str, Any] = {
                    "beta": self.dpo.beta,
                    "max_length": MAX_LENGTH,
                    **self.arguments(self.dpo, folder),
                }
                simpo: dict[str, Any] = {
                    "loss_type": "simpo",
                    "simpo_gamma": self.dpo.of_loss("simpo_gamma"),
                    "cpo_alpha": 0.0,
                }
                kind: Any
                kind, config = (
                    (ORPOTrainer, ORPOConfig(**common))
                    if self.dpo.loss == "orpo"
                    else (CPOTrainer, CPOConfig(**common, **simpo))
                )
                rows = Dataset.from_list(texts)
                trainer = kind(model=policy, args=config, train_dataset=rows, processing_class=self.tokenizer)
                return measure.timed(trainer)()

        return train


def main(shape: dict[str, Any] = SHAPE, result: str = RESULT) -> None:
    """Measure, print and write the results."""
    params, tokenizer, real, source = set_up()
    found: dict[str, dict[str, Any]] = {}
    for loss in LOSSES:
        case = LossCase(tokenizer, real[::EPOCHS], params, loss, shape)
        parts = [case.pairs[i * BATCH :][:BATCH] for i in range(measure.ROUNDS + 1)]
        rounds = measure.turns(
            *(partial(_next, map(side, parts)) for side in (case.ours, case.trl)), rounds=measure.ROUNDS
        )
        found[loss] = measure.compared(rounds, BATCH, "pairs")
        found[loss]["over_sigmoid"] = round(found[loss]["ratio"] / found[LOSSES[0]]["ratio"], 2)
        headline = {key: found[LOSSES[0]][key] for key in ("ratio", "low", "high", "unit")}
        common = {"peer": PEER, "data": source, "dtype": params.hardware.dtype, "cases": found}
        # After each loss, since all of them take long.
        measure.write_result(result, headline | common)


def _next(works: Iterator[Callable[[], float]]) -> float:
    """The seconds of a side's next round, whose model is made only now."""
    return next(works)()


if __name__ == "__main__":
    main()
