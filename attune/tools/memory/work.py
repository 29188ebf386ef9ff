"""Products of training: FLOP of 1,000 dialogues of SFT and 1,000 pairs of DPO, from the numbers of weights.

A product of a weight with a token's activation is 2 FLOP, its gradient to the activation 2, and to the weight, which
LoRA takes for the adapter's alone, 2 more (Kaplan et al. 2020, section 2.1). Attention scores are left out: at 256
tokens they are below 2 % for the models of `conf/model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attune.tools.memory.sizes import Size

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from attune.config.schema import Params

EXAMPLES = 1000


@dataclass(frozen=True)
class Work:
    """FLOP of `EXAMPLES` examples, of all ranks together."""

    sft: float
    dpo: float
    """With the pass of the reference, once for the pairs of a round."""

    def hours(self, rate: float) -> tuple[float, float]:
        """Hours of SFT and of DPO, at `rate` FLOP a second of all ranks together."""
        return self.sft / rate / 3600, self.dpo / rate / 3600


def work(config: PretrainedConfig, params: Params, whole: Size) -> Work:
    """The products of training.

    Examples have the lengths of the memory estimate: `sft.max_length`, of which half carries loss; one and a half times
    `dpo.max_length`, as both replies share a context, of which the replies carry loss.

    Args:
        config: of the base model.
        params: of the run.
        whole: of `sizes.size`.
    """
    text = config.get_text_config()
    head = text.vocab_size * text.hidden_size
    # The rows of the embedding are read, not multiplied.
    layers = whole.parameters - head * (1 if text.tie_word_embeddings else 2)
    sft, dpo = params.sft.max_length, 3 * params.dpo.max_length // 2
    again = params.hardware.gradient_checkpointing
    trained = _trained(layers, whole.lora, again)
    forward = 2 * (layers + whole.lora) * dpo
    # Checkpointing is of the layers; the head is frozen.
    on_head = 4 * head
    return Work(
        sft=EXAMPLES * (trained * sft + on_head * (sft // 2)),
        dpo=EXAMPLES * (trained * dpo + on_head * (2 * dpo // 3) + forward + 2 * head * (2 * dpo // 3)),
    )


def _trained(frozen: int, adapter: int, again: bool) -> int:
    """FLOP of a token in forward and backward pass, `again`: the forward pass twice."""
    return (6 if again else 4) * frozen + (8 if again else 6) * adapter
