"""The Hugging Face model of lm-evaluation-harness (`HFLM`), with the common prefix of prompts computed once.

All questions of a subject begin with the same five solved questions. `HFLM` runs every prompt from its first token and
computes logits at every position. Here the common prefix of several prompts is prefilled once into a KV cache, the rest
of the prompts runs after it in batches, and logits are computed only at the positions of the continuations. The choices
of a question come from a single forward pass, as in `HFLM` for choices of one token.

The results equal those of `HFLM` up to rounding. Long prompts are truncated from the left, as in `HFLM`. Prompts of
different lengths then begin at different tokens, and share the prefix that is left after truncation, if any.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attune.compute.batching import batches_by_count
from attune.compute.prefix_cache import common_prefix, prefix_cache, repeated
from attune.runtime.distributed import gather_by_index, rank, world_size

if TYPE_CHECKING:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import DynamicCache
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from attune.config.schema import Hardware

    # (texts of context and continuation, context ids, continuation ids)
    Request = tuple[tuple[str, str], list[int], list[int]]
    # (log-likelihood in nats, whether it is the greedy continuation)
    Answer = tuple[float, bool]


@dataclass(frozen=True)
class Row:
    """An input of the model; `continuations` are (number of the request, token ids) to score after it."""

    tokens: tuple[int, ...]
    continuations: list[tuple[int, list[int]]] = field(default_factory=list, compare=False)

    @property
    def scored(self) -> int:
        """How many of the last positions are needed: the length of the longest continuation."""
        return max(len(continuation) for _, continuation in self.continuations)


@dataclass
class Cluster:
    """Rows whose first `shared` tokens are equal."""

    shared: int
    rows: list[Row]


def shared_prefix_lm(model: Any, tokenizer: Tokenizer, batch_size: int, hardware: Hardware) -> HFLM:
    """A model for the harness that computes common prefixes once.

    `HFLM`'s own code answers for models where that is not possible: not a decoder, prompt tuning (learned virtual
    tokens before the prompt), no KV cache, or no `logits_to_keep`. Models whose state is recurrent rather than keys and
    values run without a common prefix.

    Args:
        model: a causal language model or a PeftModel, on `compute.device`.
        tokenizer: the model's.
        batch_size: questions in a forward pass.
        hardware: precision; the log-softmax is always in fp32.
    """
    from lm_eval.models.huggingface import HFLM

    class SharedPrefixLM(HFLM):
        """`HFLM` with another scoring of tokens; `cut` counts the requests that were truncated."""

        cut = 0

        def _loglikelihood_tokens(
            self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[Answer]:
            self.cut += sum(len(context) + len(choice) > self.max_length + 1 for _, context, choice in requests)
            if self.backend != "causal" or not can_share(self.model):
                return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
            answers = score(self, requests, override_bs or self.batch_size, disable_tqdm)
            for (text, _, _), answer in zip(requests, answers, strict=True):
                # As in HFLM: a request without text is of another kind, which has its own cache.
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, answer)
            return answers

    in_bf16 = hardware.precision == "bf16"
    return SharedPrefixLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        softmax_dtype="float32",
        mixed_precision_dtype="bfloat16" if in_bf16 else None,
    )


def can_share(model: Any) -> bool:
    """Whether `score` can run the model: it takes a KV cache and `logits_to_keep`, and has no prompt tuning."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"past_key_values", "logits_to_keep"} <= set(inspect.signature(bare.forward).parameters)


def score(lm: Any, requests: Sequence[Request], batch_size: int, disable_tqdm: bool = True) -> list[Answer]:
    """The log-likelihood of each continuation given its context, and whether greedy decoding would give it.

    Several ranks share the batches of a single process; each returns all answers.

    Args:
        lm: an `HFLM` of a causal model that `can_share`.
        requests: texts, context ids and continuation ids.
        batch_size: rows in a forward pass.
        disable_tqdm: no progress bar.

    Returns:
        An answer for each request, in their order.
    """
    import torch
    from tqdm import tqdm

    answers: dict[int, Answer] = {}
    rows = fit(requests, lm.max_length)
    groups = clusters(rows) if has_kv_cache(lm.model) else [Cluster(0, sorted(rows, key=lambda row: row.tokens))]
    # As in HFLM, from its own settings.
    autocast = torch.autocast(
        lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None
    )
    share = list(_share_of_rank(groups, batch_size))
    total = sum(len(batch) for _, batches in share for batch in batches)
    with torch.no_grad(), autocast, tqdm(total=total, desc="questions", disable=disable_tqdm) as bar:
        for cluster, batches in share:
            cache = prefix_cache(lm.model, cluster.rows[0].tokens[: cluster.shared]) if cluster.shared else None
            for batch in batches:
                for row, logps in zip(batch, _last_logps(lm, cache, cluster.shared, batch), strict=True):
                    for number, continuation in row.continuations:
                        answers[number] = _answer(logps[len(logps) - len(continuation) :], continuation)
                bar.update(len(batch))
    gathered = gather_by_index(answers)
    return [(logp, greedy) for logp, greedy in (gathered[number] for number in range(len(requests)))]


def _share_of_rank(groups: Sequence[Cluster], size: int) -> Iterator[tuple[Cluster, list[list[Row]]]]:
    """This rank's batches by cluster. They are consecutive, so that few clusters are prefilled on two ranks."""
    batches = [(cluster, batch) for cluster in groups for batch in _batches(cluster.rows, size)]
    share = batches[len(batches) * rank() // world_size() : len(batches) * (rank() + 1) // world_size()]
    for cluster in groups:
        if of_cluster := [batch for owner, batch in share if owner is cluster]:
            yield cluster, of_cluster


def fit(requests: Sequence[Request], max_length: int) -> list[Row]:
    """The distinct inputs of the model: context and continuation without its last token, truncated from the left.

    Requests with the same input, such as the letters after a question, share a row.
    """
    rows: dict[tuple[int, ...], Row] = {}
    for number, (_, context, continuation) in enumerate(requests):
        if not 0 < len(continuation) <= max_length:
            raise ValueError(f"request {number}: {len(continuation)} tokens to score, not 1 to {max_length}")
        tokens = tuple((context + continuation)[-(max_length + 1) :][:-1])
        rows.setdefault(tokens, Row(tokens)).continuations.append((number, continuation))
    return list(rows.values())


def clusters(rows: Sequence[Row]) -> list[Cluster]:
    """Group rows by a common prefix; rows without one form the last cluster, with `shared` = 0.

    In sorted order, rows with a common prefix are neighbours. A row joins the last cluster if that keeps at least half
    of its prefix, so that a few common words, such as those that open every subject, do not shorten a long prefix.
    """
    grouped: list[Cluster] = []
    for row in sorted(rows, key=lambda row: row.tokens):
        longest = len(row.tokens) - row.scored
        if grouped:
            last = grouped[-1]
            common = min(last.shared, longest, common_prefix([last.rows[0].tokens, row.tokens]))
            if 0 < common >= last.shared / 2:
                last.shared = common
                last.rows.append(row)
                continue
        grouped.append(Cluster(longest, [row]))
    single = [cluster.rows[0] for cluster in grouped if len(cluster.rows) == 1]
    return [cluster for cluster in grouped if len(cluster.rows) > 1] + ([Cluster(0, single)] if single else [])


def has_kv_cache(model: Any) -> bool:
    """Whether the state of every layer is keys and values, which can be kept and shared by rows."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return {type(layer) for layer in DynamicCache(config=model.config).layers} <= {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }


def _batches(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Rows of similar length, the longest first; the order of `rows`, which are sorted, decides among equal lengths."""
    return [[rows[i] for i in batch] for batch in batches_by_count([len(row.tokens) for row in rows], size)]


def _last_logps(lm: Any, cache: DynamicCache | None, shared: int, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Log-probabilities at the last `scored` positions of each row, (scored, V).

    The tokens after the prefix are padded on the right, where causal attention does not look.
    """
    import torch

    longest = max(len(row.tokens) for row in rows) - shared
    ids = torch.tensor([row.tokens[shared:] + (0,) * (longest + shared - len(row.tokens)) for row in rows])
    spans = [range(len(row.tokens) - shared - row.scored, len(row.tokens) - shared) for row in rows]
    kept = sorted({position for span in spans for position in span})
    output = lm.model(
        input_ids=ids.to(lm.device),
        past_key_values=repeated(cache, len(rows)) if cache is not None else None,
        use_cache=cache is not None,
        logits_to_keep=torch.tensor(kept, device=lm.device),
    )
    index = {position: i for i, position in enumerate(kept)}
    # The positions of a row are consecutive, and so are they in `kept`.
    scored = (logits[index[span[0]] :][: len(span)] for logits, span in zip(output.logits, spans, strict=True))
    return [logits.log_softmax(-1, dtype=lm.softmax_dtype) for logits in scored]


def _answer(logps: torch.Tensor, continuation: Sequence[int]) -> Answer:
    import torch

    tokens = torch.tensor(continuation, device=logps.device)
    total = logps.gather(-1, tokens[:, None]).sum()
    return float(total), bool((logps.argmax(-1) == tokens).all())
