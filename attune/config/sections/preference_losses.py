"""The losses that DPO can train with, and which params each of them reads.

TRL 1.16 computes them from pairs: in `DPOTrainer`, but for simpo (`CPOTrainer`) and orpo (`ORPOTrainer`), which have no
reference model.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

REFERENCE_FREE = ("simpo", "orpo")
# They sort the pairs of a micro-batch, so that a pair's loss depends on the others.
SORTING = ("aot", "aot_unpaired")
# Losses of the difference of the two rewards, in which the normaliser of another divergence cancels.
OF_DIFFERENCE = ("sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "exo_pair", "discopop")
LOSSES = (*OF_DIFFERENCE, "nca_pair", "apo_zero", "apo_down", "bco_pair", "sppo_hard", *SORTING, *REFERENCE_FREE)
# The losses that read a param, each with its value where the param is null; conf/config.yaml has the sources.
READERS: dict[str, dict[str, float]] = {
    "label_smoothing": {"robust": 0.1, "exo_pair": 1e-3, "aot": 0.0, "aot_unpaired": 0.0, "simpo": 0.0},
    "discopop_tau": {"discopop": 0.05},
    "simpo_gamma": {"simpo": 0.5},
}
# As READERS, of the divergence.
F_ALPHA = 0.5


def names(loss: str | list[str]) -> list[str]:
    """The losses that `dpo.loss` names."""
    return [loss] if isinstance(loss, str) else loss


def _known(loss: Any) -> Any:
    if not isinstance(loss, str | list):
        raise ValueError(f"no loss and no list of losses: name one of {', '.join(LOSSES)}")
    for name in names(loss):
        if name == "sft":
            raise ValueError(
                "TRL's loss 'sft' is dpo.sft_weight here: set that to its weight, and leave sft out of dpo.loss and "
                "its weight out of dpo.loss_weights"
            )
        if name not in LOSSES:
            raise ValueError(f"{name!r} is none of the losses {', '.join(LOSSES)}")
    if len(set(names(loss))) < max(len(names(loss)), 1):
        raise ValueError("a list has at least one loss, and each of them once")
    return loss


# Before pydantic, which would have a sentence for each side of the union.
Loss = Annotated[str | list[str], BeforeValidator(_known)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]
