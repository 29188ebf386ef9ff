"""The loop that decodes a batch of replies.

transformers' `generate` pads all prompts of a batch to the longest and reads each as often as it has replies, carries a
row on until the last one ends, and appends to the keys and values of all layers at each token by copying them: two
thirds of its time on a CPU. Here a prompt is read once, however many replies it has, beside those of about its length;
what is computed of it is copied once, into tensors with room for the reply; and rows that have ended are taken out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from attune.compute.batching import batches_by_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from attune.generation.sampling import Choose

# Prompts are read so many tokens at once: on a CPU, what a layer computes of them then stays in its caches.
READ = 1024
# Taking rows out copies those that stay: it waits until so large a part of them has ended.
ENDED = 0.25


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Sequence[int],
    choose: Choose,
    pad_id: int,
) -> list[list[int]]:
    """The tokens of a reply to each prompt, without the stop that ends it.

    Args:
        model: in eval mode; called in the caller's precision and without gradients.
        prompts: N lists of token ids; one that stands there several times is read once.
        max_new_tokens: longest reply.
        stops: ids that end a reply.
        choose: takes the next tokens.
        pad_id: fills shorter prompts on the left.
    """
    import torch

    mask = left_pad(prompts, pad_id, model.device)[1]
    past, scores = _read(model, prompts, max_new_tokens - 1, pad_id)
    rows, ended = list(range(len(prompts))), [False] * len(prompts)
    replies: list[list[int]] = [[] for _ in prompts]
    for step in range(1, max_new_tokens + 1):
        tokens = choose(scores, rows)
        for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            ended[place] = ended[place] or token in stops
            if not ended[place]:
                replies[row].append(token)
        if all(ended) or step == max_new_tokens:
            break
        if sum(ended) >= ENDED * len(rows):
            going = [place for place, over in enumerate(ended) if not over]
            past.batch_select_indices(torch.tensor(going, device=model.device))
            tokens, mask, rows, ended = tokens[going], mask[going], [rows[i] for i in going], [False] * len(going)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        scores = _scores(model, tokens[:, None], mask, past)
    return replies


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their mask, (N, longest prompt) each; prompts end together."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _read(model: Any, prompts: Sequence[Sequence[int]], room: int, pad_id: int) -> tuple[Any, torch.Tensor]:
    """A cache of N prompts, which end together, with room for `room` tokens more, and the scores (N, V) of the next."""
    from transformers import Cache, DynamicCache

    rows: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt), []).append(row)
    distinct, longest = list(rows), max(map(len, prompts))
    layers = [_layer_class()(longest, room) for _ in range(model.config.get_text_config().num_hidden_layers)]
    scores: Any = None
    for part in batches_by_tokens([len(prompt) for prompt in distinct], READ):
        ids, mask = left_pad([distinct[i] for i in part], pad_id, model.device)
        past: Any = DynamicCache()
        read = _scores(model, ids, mask, past)
        to = [row for i in part for row in rows[distinct[i]]]
        source = [place for place, i in enumerate(part) for _ in rows[distinct[i]]]
        scores = read.new_empty(len(prompts), read.shape[1]) if scores is None else scores
        scores[to] = read[source]
        for layer, one in zip(layers, past.layers, strict=True):
            layer.put(to, one.keys[source], one.values[source], len(prompts))
    return Cache(layers=layers), scores


def _scores(model: Any, ids: torch.Tensor, mask: torch.Tensor, past: Any) -> torch.Tensor:
    """Scores of the token behind `ids`, (N, V) in fp32; `mask` covers what is in `past` and `ids`."""
    places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=past, use_cache=True, logits_to_keep=1
    )
    scores: torch.Tensor = output.logits[:, -1].float()
    return scores


@cache
def _layer_class() -> type:
    """A layer of transformers' cache that writes what is added into tensors with room for it."""
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        """Keys and values of one layer, each (rows, heads, tokens, head size), views of tensors of more tokens."""

        def __init__(self, length: int, room: int) -> None:
            super().__init__()
            self.length, self.room = length, room

        def put(self, to: list[int], keys: torch.Tensor, values: torch.Tensor, rows: int) -> None:
            """Put states into the rows `to` of `rows`, at the end of `length` tokens."""
            if not self.is_initialized:
                self.lazy_initialization(keys, values)
                shape = (rows, keys.shape[1], self.length + self.room, keys.shape[3])
                self.states = [keys.new_empty(shape), values.new_empty(shape)]
                self._show()
            start = self.length - keys.shape[2]
            for whole, states in zip(self.states, (keys, values), strict=True):
                # Attention weighs what is before a shorter prompt by 0, which only finite numbers survive.
                whole[to, :, :start] = 0
                whole[to, :, start : self.length] = states

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            """Add what is behind the tokens that are there; returns the keys and values of all."""
            start, self.length = self.length, self.length + key_states.shape[2]
            for whole, states in zip(self.states, (key_states, value_states), strict=True):
                whole[:, :, start : self.length] = states
            self._show()
            return self.keys, self.values

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            """Go on with these rows alone."""
            self.states = [whole[indices] for whole in self.states]
            self._show()

        def _show(self) -> None:
            self.keys, self.values = (whole[:, :, : self.length] for whole in self.states)

    return RoomyLayer
