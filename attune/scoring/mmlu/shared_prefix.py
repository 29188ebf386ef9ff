"""The harness's Hugging Face model, with the work that many prompts have in common done once.

A subject's questions all begin with the same five solved ones. Plain `HFLM` runs every prompt from its first token and
projects every position onto the vocabulary; here the tokens that prompts share go through the model once, their keys
and values are kept, and behind them runs only what differs, in batches; only the positions that are asked for are
projected. The choices of one question are read off the same forward pass, as `HFLM` does for one-token choices.

The numbers are `HFLM`'s up to rounding. Prompts that are too long are cut from the left as there, which gives prompts
of different lengths different beginnings: those share what is left in common after the cut, which may be nothing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attune.runtime.distributed import gather_by_index, rank, world_size

if TYPE_CHECKING:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import DynamicCache
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Hardware

    Request = tuple[tuple[str, str], list[int], list[int]]
    Answer = tuple[float, bool]


@dataclass(frozen=True)
class Row:
    """One input of the model, and what is asked of it.

    `scored` is how many of its last positions are needed; `asked` holds (request, continuation) by number.
    """

    tokens: tuple[int, ...]
    asked: list[tuple[int, list[int]]] = field(default_factory=list, compare=False)

    @property
    def scored(self) -> int:
        """The length of the longest continuation."""
        return max(len(continuation) for _, continuation in self.asked)


@dataclass
class Cluster:
    """Rows whose first `shared` tokens are the same."""

    shared: int
    rows: list[Row]


def shared_prefix_lm(model: Any, tokenizer: Tokenizer, batch_size: int, hardware: Hardware) -> HFLM:
    """A model for the harness that shares prefixes.

    `HFLM`'s own code answers instead, where sharing cannot serve: for a model that is no decoder, one with learnt
    virtual tokens before the prompt (prompt tuning), and one whose forward takes no cache of keys and values or cannot
    leave positions out. Models with a recurrent state in place of keys and values run without sharing.

    Args:
        model: a causal language model or a PeftModel on one, on `compute.device`.
        tokenizer: the model's.
        batch_size: questions in one forward pass.
        hardware: precision; log-probabilities are taken in fp32 whatever it is.
    """
    from lm_eval.models.huggingface import HFLM

    class SharedPrefixLM(HFLM):
        """`HFLM` but for the scoring of tokens; counts the requests that were `cut` from the left."""

        cut = 0

        def _loglikelihood_tokens(
            self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[Answer]:
            self.cut += sum(len(context) + len(choice) > self.max_length + 1 for _, context, choice in requests)
            if self.backend != "causal" or not can_share(self.model):
                return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
            answers = score(self, requests, override_bs or self.batch_size, disable_tqdm)
            for (text, _, _), answer in zip(requests, answers, strict=True):
                # As in HFLM: a request without its text belongs to another kind, which keeps its own cache.
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, answer)
            return answers

    in_bf16 = hardware.dtype == "bf16"
    return SharedPrefixLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        softmax_dtype="float32",
        mixed_precision_dtype="bfloat16" if in_bf16 else None,
    )


def can_share(model: Any) -> bool:
    """Whether the model takes a cache and lets positions be left out, so that `score` can run it."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"past_key_values", "logits_to_keep"} <= set(inspect.signature(bare.forward).parameters)


def score(lm: Any, requests: Sequence[Request], batch_size: int, disable_tqdm: bool = True) -> list[Answer]:
    """Log-likelihood of each continuation after its context, and whether it is the greedy one.

    Several ranks share the batches of one process; each returns all answers.

    Args:
        lm: an `HFLM` of a causal model that `can_share`.
        requests: (texts, context ids, continuation ids).
        batch_size: rows in one forward pass.
        disable_tqdm: no progress bar.

    Returns:
        An answer a request, in their order: nats, and true where every token is the most likely one.
    """
    import torch
    from tqdm import tqdm

    answers: dict[int, Answer] = {}
    rows = fit(requests, lm.max_length)
    groups = clusters(rows) if keeps_keys(lm.model) else [Cluster(0, rows)]
    autocast = torch.autocast(
        lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None
    )
    shares = list(_own_batches(groups, batch_size))
    own = sum(len(batch) for _, batches in shares for batch in batches)
    with torch.no_grad(), autocast, tqdm(total=own, desc="questions", disable=disable_tqdm) as bar:
        for cluster, batches in shares:
            cache = _read(lm, cluster.rows[0].tokens[: cluster.shared]) if cluster.shared else None
            for batch in batches:
                for row, logps in zip(batch, _last_logps(lm, cache, cluster.shared, batch), strict=True):
                    for number, continuation in row.asked:
                        answers[number] = _answer(logps[len(logps) - len(continuation) :], continuation)
                bar.update(len(batch))
    found = gather_by_index(answers)
    return [(logp, greedy) for logp, greedy in (found[number] for number in range(len(requests)))]


def _own_batches(groups: Sequence[Cluster], size: int) -> Iterator[tuple[Cluster, list[list[Row]]]]:
    """This rank's batches by cluster: neighbours, so that few clusters are read by two ranks."""
    batches = [(cluster, batch) for cluster in groups for batch in _batches(cluster.rows, size)]
    own = batches[len(batches) * rank() // world_size() : len(batches) * (rank() + 1) // world_size()]
    for cluster in groups:
        if mine := [batch for one, batch in own if one is cluster]:
            yield cluster, mine


def fit(requests: Sequence[Request], max_length: int) -> list[Row]:
    """The inputs of the model: each context with its continuation but for the last token, cut from the left.

    Requests with the same input, such as the letters after a question, are one row.
    """
    rows: dict[tuple[int, ...], Row] = {}
    for number, (_, context, continuation) in enumerate(requests):
        if not 0 < len(continuation) <= max_length:
            raise ValueError(f"request {number}: {len(continuation)} tokens to score, not 1 to {max_length}")
        tokens = tuple((context + continuation)[-(max_length + 1) :][:-1])
        rows.setdefault(tokens, Row(tokens)).asked.append((number, continuation))
    return list(rows.values())


def clusters(rows: Sequence[Row]) -> list[Cluster]:
    """Rows by what they begin with; those that share with no other are one cluster with nothing shared, the last.

    Sorted, rows with a common beginning are neighbours. A row joins while it keeps at least half of what the cluster
    has in common, so that a few common words (the first of every subject) do not spoil a long prefix.
    """
    found: list[Cluster] = []
    for row in sorted(rows, key=lambda row: row.tokens):
        most = len(row.tokens) - row.scored
        if found:
            last = found[-1]
            common = min(last.shared, most, _common(last.rows[0].tokens, row.tokens))
            if 0 < common >= last.shared / 2:
                last.shared = common
                last.rows.append(row)
                continue
        found.append(Cluster(most, [row]))
    alone = [one.rows[0] for one in found if len(one.rows) == 1]
    return [one for one in found if len(one.rows) > 1] + ([Cluster(0, alone)] if alone else [])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are the same from the start."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def keeps_keys(model: Any) -> bool:
    """Whether the model's state is keys and values in every layer, which can be read by many rows and kept."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return {type(layer) for layer in DynamicCache(config=model.config).layers} <= {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }


def _batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Rows of similar length together, the longest first."""
    ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.tokens))
    yield from (ordered[i : i + size] for i in range(0, len(ordered), size))


def _read(lm: Any, tokens: Sequence[int]) -> DynamicCache:
    """Keys and values of a prefix, for one row.

    The cache holds all of them also where layers look at a window only: the mask that the model makes keeps to it.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    ids = torch.tensor([tokens], device=lm.device)
    lm.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _for_rows(cache: DynamicCache, rows: int) -> DynamicCache:
    """The cache for a batch: views of the same memory, to which the model appends by making new tensors."""
    layers: list[Any] = [copy.copy(layer) for layer in cache.layers]
    for layer in layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    shared = copy.copy(cache)
    shared.layers = layers
    return shared


def _last_logps(lm: Any, cache: DynamicCache | None, shared: int, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Log-probabilities at the last `scored` positions of each row, (scored, vocabulary).

    The rows' own tokens are padded on the right, where a causal model does not look.
    """
    import torch

    longest = max(len(row.tokens) for row in rows) - shared
    ids = torch.tensor([row.tokens[shared:] + (0,) * (longest + shared - len(row.tokens)) for row in rows])
    spans = [range(len(row.tokens) - shared - row.scored, len(row.tokens) - shared) for row in rows]
    kept = sorted({position for span in spans for position in span})
    output = lm.model(
        input_ids=ids.to(lm.device),
        past_key_values=_for_rows(cache, len(rows)) if cache is not None else None,
        use_cache=cache is not None,
        logits_to_keep=torch.tensor(kept, device=lm.device),
    )
    where = {position: i for i, position in enumerate(kept)}
    # A row's positions are neighbours in `kept`, as they are in the row.
    own = (logits[where[span[0]] :][: len(span)] for logits, span in zip(output.logits, spans, strict=True))
    return [logits.log_softmax(-1, dtype=lm.softmax_dtype) for logits in own]


def _answer(logps: torch.Tensor, continuation: Sequence[int]) -> Answer:
    import torch

    tokens = torch.tensor(continuation, device=logps.device)
    total = logps.gather(-1, tokens[:, None]).sum()
    return float(total), bool((logps.argmax(-1) == tokens).all())
