"""Memory of a training step of SFT or DPO, measured on a model without weights.

The model is created from its configuration on torch's meta device, its tensors are replaced by fake tensors (shape and
dtype only), and the forward pass of the stage runs on them. So the tensors that autograd saves for the backward pass
are counted, not derived by hand. All layers of a decoder save equally much, so models with two and with three layers
give the memory of any number of layers by linear extrapolation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attune.cpu.optimize import chunk_tokens, document_masks, uses_varlen
from attune.tools.memory import sizes
from attune.tools.memory.sizes import Step
from attune.training.common.collate import IGNORED
from attune.training.common.packed_forward import attention_masks, project, states_at, unwrap_peft
from attune.training.common.packing import Document, pack

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from attune.config.schema import Hardware, Params

# Layers of the two measured models; their difference is a layer. Not 1 and 2: a single layer is first and last at once.
FEW, MORE = 2, 3
# Tile of TRL's log-probabilities on a GPU, tokens x vocabulary entries (trl/kernels/chunked_logprob.py).
TILE_TOKENS, TILE_WORDS = 4096, 32768
# What `_saved` has measured.
_KNOWN: dict[str, Kept] = {}


@dataclass(frozen=True)
class Kept:
    """Bytes of a micro-batch.

    `activations` and `logits` are saved for the backward pass. `again` is the memory that gradient checkpointing needs
    to recompute one layer at a time, plus the adapter in bf16. `passing` is the gradient of the logits, or the largest
    chunk of logits that exists at once.
    """

    activations: int
    logits: int
    again: int = 0
    passing: int = 0

    @property
    def saved(self) -> int:
        """Bytes that autograd saves between the forward and the backward pass."""
        return self.activations + self.logits

    @property
    def total(self) -> int:
        """The sum of all fields: an upper bound, since their peaks may not coincide."""
        return self.saved + self.again + self.passing


def kept(config: PretrainedConfig, params: Params, step: Step, checkpointing: bool, micro_batch: int) -> Kept:
    """The memory of a step on a micro-batch whose rows all have the maximum length that the params allow.

    Assumes that half of the tokens of a dialogue are the assistant's and carry the loss, and that the context of a pair
    and each of its replies take half of `dpo.max_length`.

    Args:
        config: configuration of the base model.
        params: params of the run.
        step: sft or dpo.
        checkpointing: as `training.gradient_checkpointing`.
        micro_batch: its size, in dialogues (SFT) or pairs (DPO).
    """
    layers = int(config.get_text_config().num_hidden_layers)
    few, more = _pair(config, _checkpointed(params, checkpointing), step, micro_batch)
    again = few.again + (layers - FEW) * (more.again - few.again)
    if checkpointing:
        few_plain, more_plain = _pair(config, _checkpointed(params, False), step, micro_batch)
        again += more_plain.activations - few_plain.activations
    return Kept(
        activations=few.activations + (layers - FEW) * (more.activations - few.activations),
        logits=few.logits,
        again=again,
        passing=few.passing,
    )


def _checkpointed(params: Params, checkpointing: bool) -> Params:
    hardware = params.hardware.having(gradient_checkpointing=checkpointing)
    return params.with_hardware(hardware)


def _pair(config: PretrainedConfig, params: Params, step: Step, micro_batch: int) -> tuple[Kept, Kept]:
    """The memory of the models with `FEW` and with `MORE` layers."""
    few, more = (_saved(_with_layers(config, layers), params, step, micro_batch) for layers in (FEW, MORE))
    return few, more


def _with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    fewer = copy.deepcopy(config)
    text = fewer.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[i % len(text.layer_types)] for i in range(layers)]
    return fewer


def _saved(config: PretrainedConfig, params: Params, step: Step, micro_batch: int) -> Kept:
    """`_measured`, once a process for each model, since columns of the table and proposals have many in common."""
    hardware = params.hardware
    # Neither 4-bit weights nor the optimizer change what a step keeps.
    settings = hardware.device, hardware.precision, hardware.compile, hardware.gradient_checkpointing
    key = f"{settings} {params.lora} {params.sft} {params.dpo} {step} {micro_batch} {config.to_json_string(False)}"
    if key not in _KNOWN:
        _KNOWN[key] = _measured(config, params, step, micro_batch)
    return _KNOWN[key]


def _measured(config: PretrainedConfig, params: Params, step: Step, micro_batch: int) -> Kept:
    """Bytes that the forward pass of a model with configuration `config` saves."""
    import torch
    from torch._subclasses import FakeTensorMode

    vocabulary = config.get_text_config().vocab_size
    policy, mode = sizes.policy(config, params, step), FakeTensorMode()
    forward = (_supervised if step == "sft" else _pairs)(policy, params, micro_batch)
    with sizes.quiet(), mode:
        _fake(policy)
        # Fake tensors of the CPU: autocast ignores the meta device, and CUDA tensors need a GPU.
        half = params.hardware.precision == "bf16"
        with torch.autocast("cpu", torch.bfloat16, enabled=half), saving(policy) as storages:
            forward(mode)
    logits = sum(size for size, shape in storages.values() if shape[-1:] == (vocabulary,))
    passing = _passing(config, params, step, micro_batch, uses_varlen(unwrap_peft(policy)))
    return Kept(sum(size for size, _ in storages.values()) - logits, logits, _casts(policy, params.hardware), passing)


def _casts(policy: Any, hardware: Hardware) -> int:
    """Bytes of the bf16 copy of the adapter, which autocast caches in the forward pass if no graph saves it."""
    if not (hardware.gradient_checkpointing and hardware.device == "cuda" and hardware.precision == "bf16"):
        return 0
    return sum(2 * weight.numel() for weight in policy.parameters() if weight.requires_grad)


def _fake(policy: Any) -> None:
    """Replace the policy's tensors by new ones of the active fake mode; tied weights stay tied."""
    import torch

    made: dict[int, Any] = {}
    for module in policy.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                fake = torch.nn.Parameter(
                    torch.empty(tensor.shape, dtype=tensor.dtype), requires_grad=tensor.requires_grad
                )
                module._parameters[name] = made.setdefault(id(tensor), fake)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)


def _supervised(policy: Any, params: Params, micro_batch: int) -> Callable[[Any], torch.Tensor]:
    """The forward pass of SFT, as in `supervised_trainer`, on dialogues whose second half carries the loss."""
    import torch

    length = params.sft.max_length
    if uses_varlen(unwrap_peft(policy)):
        return _packed(policy, [Document([0] * (length - length // 2), [[0] * (length // 2)])] * micro_batch)

    def forward(mode: Any) -> torch.Tensor:
        ids = torch.zeros(micro_batch, length, dtype=torch.long)
        # By index: a boolean mask selects by its values, and fake tensors have none.
        indices = torch.zeros(micro_batch * (length // 2), dtype=torch.long)
        head = policy.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].flatten(0, 1)[indices],))
        logits = policy(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        hook.remove()
        return torch.nn.functional.cross_entropy(logits.float(), indices, reduction="sum")

    return forward


def _pairs(policy: Any, params: Params, micro_batch: int) -> Callable[[Any], torch.Tensor]:
    """The forward pass of DPO, as in `packed_output`; DPO runs without dropout."""
    import torch

    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    context = params.dpo.max_length // 2
    return _packed(policy, [Document([0] * context, [[0] * (params.dpo.max_length - context)] * 2)] * micro_batch)


def _packed(policy: Any, documents: list[Document]) -> Callable[[Any], torch.Tensor]:
    """The forward pass on packed documents that have no beginning in common."""
    model = unwrap_peft(policy)
    packed = pack(documents, 0, uses_varlen(model), share=False)
    packed["indices"] = packed["predictors"][packed["targets"] != IGNORED]
    packed["distinct"] = packed["indices"].unique()

    def forward(mode: Any) -> torch.Tensor:
        batch = {name: mode.from_tensor(tensor) for name, tensor in packed.items()}
        if uses_varlen(model):
            # The lengths are passed explicitly: fake tensors have no values to derive them from.
            lengths = [len(document) for document in documents]
            masks = document_masks(batch["packed_segments"], batch["packed_positions"], lengths, shared=False)
            attention: dict[str, Any] = {"documents": masks}
        else:
            attention = {"attention_mask": attention_masks(model, batch)}
        states = states_at(model, batch, attention, batch["indices"], batch["distinct"])
        return project(model, states, batch["indices"])["log_probs"].sum()

    return forward


@contextmanager
def saving(model: Any) -> Iterator[dict[int, tuple[int, tuple[int, ...]]]]:
    """Record what autograd saves within the block, except weights: storage to (bytes, shape of a tensor)."""
    import torch

    weights = {weight.untyped_storage()._cdata for weight in [*model.parameters(), *model.buffers()]}
    storages: dict[int, tuple[int, tuple[int, ...]]] = {}
    alive = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = (storage.nbytes(), tuple(tensor.shape))
            alive.append(storage)  # else a later storage could get the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield storages


def _passing(config: PretrainedConfig, params: Params, step: Step, micro_batch: int, varlen: bool) -> int:
    """Bytes of logits that are not saved for the backward pass: a chunk of them, or of padded SFT their gradient."""
    words, width = config.get_text_config().vocab_size, config.get_text_config().hidden_size
    half = 2 if params.hardware.precision == "bf16" else 4
    if varlen:
        return chunk_tokens(words) * words * (4 + half)
    if step == "sft":
        logits = micro_batch * (params.sft.max_length // 2) * words
        return logits * 4 + (logits * half if half == 2 else 0)
    tokens = 2 * micro_batch * (params.dpo.max_length - params.dpo.max_length // 2)
    return min(tokens, TILE_TOKENS) * TILE_WORDS * half + tokens * width * 4
