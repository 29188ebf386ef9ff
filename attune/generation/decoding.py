"""Decode a batch of replies: prefill the prompts into a KV cache, then decode one token per step.

transformers' `generate` pads all prompts of a batch to the longest, prefills a prompt once for each of its replies,
decodes a row until the last row of the batch ends, and at each token copies the keys and values of all layers. Here
the tokens that all prompts begin with, such as the system prompt, are prefilled once. The rest of a prompt is prefilled
once for all of its replies, decoded or given, in a batch of prompts of similar length. Its keys and values are copied
once, into tensors with room for the reply. Rows whose reply has ended are dropped from the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from attune.compute.batching import batches_by_tokens
from attune.compute.prefix_cache import common_prefix, prefix_cache, repeated

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from attune.generation.sampling import Choose

# Tokens of a prefill batch: on a CPU the activations of a layer then stay in its caches; a GPU is busy with many.
PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
# Dropping ended rows copies the cache of the others, so it waits until this share of the rows has ended.
ENDED_SHARE = 0.25


@dataclass(frozen=True)
class Prefilled:
    """The keys and values of N padded prompts, and the logits after them; each distinct prompt is computed once.

    Attributes:
        model: in eval mode; the caller sets precision (autocast) and `no_grad` for all that is computed with it.
        shared: the number of tokens that all prompts begin with. The padding of a shorter prompt stands after them.
        mask: (N, longest prompt).
        logits: of the first token of a reply, (N, V) in fp32.
        caches: of the batches that were prefilled.
        rows: the cache, and the row in it, of each of the N prompts.
    """

    model: PreTrainedModel
    shared: int
    mask: torch.Tensor
    logits: torch.Tensor
    caches: list[Any]
    rows: list[tuple[int, int]]

    def cache(self, prompts: Sequence[int], room: int) -> Any:
        """A copy of the keys and values of these prompts (indices), with room for `room` more tokens."""
        from transformers import Cache

        layers = [_layer_class()(self.shared, self.mask.shape[1], room) for _ in self.caches[0].layers]
        for number, past in enumerate(self.caches):
            # Row `source[j]` of this cache goes into row `target[j]` of the copy.
            target = [i for i, prompt in enumerate(prompts) if self.rows[prompt][0] == number]
            source = [self.rows[prompts[i]][1] for i in target]
            if not target:
                continue
            for layer, prefilled in zip(layers, past.layers, strict=True):
                layer.put(target, prefilled.keys[source], prefilled.values[source], len(prompts))
        return Cache(layers=layers)


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int) -> Prefilled:
    """Compute the prompts, in batches of similar length.

    Args:
        model: as of `Prefilled`.
        prompts: N lists of token ids; equal prompts, and the tokens that all begin with, are computed once.
        pad_id: padding of shorter prompts.
    """
    import torch

    distinct = list(dict.fromkeys(map(tuple, prompts)))
    shared = common_prefix(distinct) if len(distinct) > 1 and _keeps_all(model) else 0
    prefix = prefix_cache(model, distinct[0][:shared])
    rows: dict[tuple[int, ...], tuple[int, int]] = {}
    caches: list[Any] = []
    logits: list[torch.Tensor] = []
    for batch in batches_by_tokens([len(prompt) - shared for prompt in distinct], PREFILL_TOKENS[model.device.type]):
        ids, mask = pad_rest([distinct[i] for i in batch], shared, pad_id, model.device)
        caches.append(repeated(prefix, len(batch)))
        logits.append(_next_logits(model, ids, mask, caches[-1]))
        rows |= {distinct[i]: (len(caches) - 1, row) for row, i in enumerate(batch)}
    # The order of the concatenated batches is that in which `rows` was filled.
    position = {prompt: i for i, prompt in enumerate(rows)}
    return Prefilled(
        model,
        shared,
        pad_rest(prompts, shared, pad_id, model.device)[1],
        torch.cat(logits)[[position[tuple(prompt)] for prompt in prompts]],
        caches,
        [rows[tuple(prompt)] for prompt in prompts],
    )


def decode(prompts: Prefilled, max_new_tokens: int, stops: Sequence[int], choose: Choose) -> list[list[int]]:
    """The tokens of a reply to each prompt, without the stop token; arguments as those of `decode_steps`."""
    replies: list[list[int]] = [[] for _ in prompts.rows]
    for row, token in decode_steps(prompts, max_new_tokens, stops, choose):
        replies[row].append(token)
    return replies


def decode_steps(
    prompts: Prefilled, max_new_tokens: int, stops: Sequence[int], choose: Choose
) -> Iterator[tuple[int, int]]:
    """The tokens of a reply to each prompt as they are decoded: the index of the prompt, and a token of its reply.

    Args:
        prompts: of `prefill`.
        max_new_tokens: longest reply.
        stops: ids that end a reply; they are not yielded.
        choose: chooses the next tokens from the logits.
    """
    import torch

    model, mask, logits = prompts.model, prompts.mask, prompts.logits
    # rows[i] is the prompt that row i of the batch answers; ended[i] is true once its reply has ended.
    rows, ended = list(range(len(prompts.rows))), [False] * len(prompts.rows)
    past = prompts.cache(rows, max_new_tokens - 1)
    for step in range(1, max_new_tokens + 1):
        tokens = choose(logits, rows)
        for i, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            ended[i] = ended[i] or token in stops
            if not ended[i]:
                yield row, token
        if all(ended) or step == max_new_tokens:
            break
        if sum(ended) >= ENDED_SHARE * len(rows):
            going = [i for i, over in enumerate(ended) if not over]
            past.batch_select_indices(torch.tensor(going, device=model.device))
            tokens, mask, rows, ended = tokens[going], mask[going], [rows[i] for i in going], [False] * len(going)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits = _next_logits(model, tokens[:, None], mask, past)


def reply_logps(
    prompts: Prefilled, answered: Sequence[int], replies: Sequence[Sequence[int]], pad_id: int
) -> list[torch.Tensor]:
    """The log-probability (nats) of each token of each reply, (R,) of a reply of R tokens.

    Args:
        prompts: of `prefill`.
        answered: the prompt (index) of each reply.
        replies: lists of token ids, of at least one token.
        pad_id: right padding of shorter replies.
    """
    import torch

    model, answered, longest = prompts.model, list(answered), max(map(len, replies))
    first = prompts.logits[answered]
    ids = torch.tensor([[*reply, *[pad_id] * (longest - len(reply))] for reply in replies], device=model.device)
    later = first[:, None, :0]
    if longest > 1:
        read = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in replies], device=model.device)[:, :-1]
        mask = torch.cat([prompts.mask[answered], read], 1)
        later = model(
            input_ids=ids[:, :-1],
            attention_mask=mask,
            position_ids=position_ids(mask)[:, 1 - longest :],
            past_key_values=prompts.cache(answered, longest - 1),
            use_cache=True,
        ).logits
    logps = []
    for row, reply in enumerate(replies):
        # The logits at a token predict the next one: `first` predicts the first token of a reply.
        logits = torch.cat([first[row : row + 1], later[row, : len(reply) - 1].float()])
        logps.append(logits.log_softmax(-1).gather(1, ids[row, : len(reply), None])[:, 0])
    return logps


def pad_rest(
    prompts: Sequence[Sequence[int]], shared: int, pad_id: int, device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens after the `shared` first ones, (N, longest rest), padded on the left; and the mask of whole prompts.

    The mask is (N, longest prompt): 1 for the shared tokens, 0 for padding, 1 for the rest.
    """
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(p)) + list(p[shared:]) for p in prompts], device=device)
    lengths = [(len(p) - shared, longest - len(p)) for p in prompts]
    mask = torch.tensor([[1] * shared + [0] * padding + [1] * rest for rest, padding in lengths], device=device)
    return ids, mask


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """Position ids (N, T) of a padded batch: a row counts its tokens from 0, without padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _keeps_all(model: Any) -> bool:
    """Whether every layer attends to all tokens before; a sliding window would count padding between them."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return {type(layer) for layer in DynamicCache(config=model.config).layers} == {DynamicLayer}


def _next_logits(model: Any, ids: torch.Tensor, mask: torch.Tensor, past: Any) -> torch.Tensor:
    """Logits of the token after `ids`, (N, V) in fp32; `mask` covers the tokens in `past` and `ids`."""
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask)[:, -ids.shape[1] :],
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits


@cache
def _layer_class() -> type:
    """A layer of transformers' cache that writes new keys and values into tensors allocated in advance."""
    import torch
    from transformers.cache_utils import DynamicLayer

    class PreallocatedLayer(DynamicLayer):
        """Keys and values of one layer, (rows, heads, tokens, head size) each: views of tensors with more tokens."""

        def __init__(self, shared: int, length: int, room: int) -> None:
            super().__init__()
            self.shared, self.length, self.room = shared, length, room

        def put(self, target: list[int], keys: torch.Tensor, values: torch.Tensor, rows: int) -> None:
            """Write the states of prompts into the rows `target` of `rows`.

            The shared tokens stand at the beginning, and the rest of a prompt ends at token `length`.
            """
            device = keys.device.type
            if not self.is_initialized:
                self.lazy_initialization(keys, values)
                shape = (rows, keys.shape[1], self.length + self.room, keys.shape[3])
                # Under autocast, which casts them for every product: cast once.
                dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else keys.dtype
                self.buffers = [keys.new_empty(shape, dtype=dtype), values.new_empty(shape, dtype=dtype)]
                self._update_views()
            shared, start = self.shared, self.shared + self.length - keys.shape[2]
            for buffer, states in zip(self.buffers, (keys, values), strict=True):
                buffer[target, :, :shared] = states[:, :, :shared].to(buffer.dtype)
                # Masked positions get attention weight 0, and 0 times an uninitialised NaN would be NaN.
                buffer[target, :, shared:start] = 0
                buffer[target, :, start : self.length] = states[:, :, shared:].to(buffer.dtype)

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            """Append the states of new tokens; returns the keys and values of all tokens."""
            start, self.length = self.length, self.length + key_states.shape[2]
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, start : self.length] = states
            self._update_views()
            return self.keys, self.values

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            """Keep these rows only."""
            self.buffers = [buffer[indices] for buffer in self.buffers]
            self._update_views()

        def _update_views(self) -> None:
            self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)

    return PreallocatedLayer
