"""What DPO moved: a round's policy against the reference, on pairs of the valid split that it was not trained on.

The loss and the rewards see differences of log-probabilities alone. A policy that lowers the chosen replies, if it
lowers the rejected ones more, has a falling loss and a growing margin. So a round is also measured by the
log-probabilities themselves, by its distance from the reference, and by its entropy.

Both models read the same packed pairs, one after the other. Of the first the hidden states are kept, not the
distributions over the vocabulary, which take a hundred times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attune.compute.batching import batches_by_tokens
from attune.compute.memory import free_memory
from attune.compute.process import autocast
from attune.cpu.optimize import uses_varlen
from attune.models.loading import load_adapter, load_base, load_tokenizer
from attune.training.common.collate import IGNORED
from attune.training.common.packed_forward import (
    attention_arguments,
    prepare,
    states_at,
    unsupported_reason,
    unwrap_peft,
)
from attune.training.common.packing import Document, pack
from attune.training.dpo.encoding import encode_pairs
from attune.training.dpo.reference_logps import TOKENS_PER_PASS

if TYPE_CHECKING:
    import torch

    from attune.config.schema import Params

# Rows of logits at a time, in fp32: 25 MB of a vocabulary of 50,000, and several such tensors.
ROWS = 128


class Movement(NamedTuple):
    """A policy on N held-out pairs. Means over tokens count every token of the chosen (or rejected) replies alike.

    Attributes:
        margin: nats; the mean over the pairs of the chosen reply's log pi - log ref less the rejected reply's, each
            summed over its tokens. Times `dpo.beta` it is the margin of DPO's rewards.
        accuracy: percentage of pairs with a margin above 0; a tie counts half.
        kl: nats a token; the mean over the chosen replies' tokens of KL(pi || ref) of the next token's distribution.
        chosen_logp: nats a token; the mean log-probability of the chosen replies' tokens.
        rejected_logp: the same of the rejected replies.
        entropy: nats; the mean over the chosen replies' tokens of the entropy of the next token's distribution.
    """

    margin: float
    accuracy: float
    kl: float
    chosen_logp: float
    rejected_logp: float
    entropy: float


class Reading(NamedTuple):
    """What a model makes of the replies of the pairs.

    Args:
        states: (M, H) last hidden states that predict the tokens of all replies, in the order of the passes.
        head: (V, H) and (V,) or None: the projection onto the vocabulary.
        softcap: of the logits, or None.
    """

    states: torch.Tensor
    head: tuple[torch.Tensor, torch.Tensor | None]
    softcap: float | None


def measure(
    base: Path, adapter: Path, reference: Path, pairs: Path, params: Params
) -> tuple[Movement, Movement] | None:
    """The movement of the reference itself, which is where training starts, and that of the policy.

    Args:
        base: folder of the base model.
        adapter: the policy's.
        reference: the reference's adapter; of a loss without one, the adapter that training started from.
        pairs: parquet file of the held-out pairs.
        params: of the run.

    Returns:
        None if there is no pair, or the architecture does not take packed sequences.
    """
    tokenizer = load_tokenizer(base)
    encoded, _ = encode_pairs(tokenizer, pairs, params.dpo.max_length, params.dpo.overlong == "drop")
    if not encoded:
        return None
    documents = [Document(pair["prompt_ids"], [pair["chosen_ids"], pair["rejected_ids"]]) for pair in encoded]
    lengths = [len(document) for document in documents]
    passes = [[documents[i] for i in batch] for batch in batches_by_tokens(lengths, TOKENS_PER_PASS)]
    readings = []
    for folder in (reference, adapter):
        model = load_adapter(load_base(base, params.hardware), folder, trainable=False)
        if unsupported_reason(model) is not None:
            return None
        prepare(model, params.hardware, params.dpo.max_length)
        readings.append(read(model, passes, params, tokenizer.pad_token_id))
        # A model is in cycles of references: without this two would be in memory.
        del model
        free_memory()
    start, end = readings
    return compare(end, start, [reply for some in passes for document in some for reply in document.replies])


def read(model: Any, passes: Sequence[Sequence[Document]], params: Params, pad_id: int) -> Reading:
    """Read the replies of all passes.

    Args:
        model: a PeftModel after `prepare`.
        passes: documents that are read together.
        params: device and precision.
        pad_id: token id of the padding.
    """
    import torch

    # Not before `prepare`, which puts in modules of its own.
    model.eval()
    policy: Any = unwrap_peft(model)
    states = []
    with torch.no_grad(), autocast(params.hardware):
        for documents in passes:
            batch = pack(documents, pad_id, uses_varlen(policy))
            batch = {name: tensor.to(params.hardware.device) for name, tensor in batch.items()}
            indices = batch["predictors"][batch["targets"] != IGNORED]
            states.append(states_at(policy, batch, attention_arguments(policy, batch), indices, indices.unique()))
    head = policy.get_output_embeddings()
    bias = getattr(head, "bias", None)
    projection = head.weight.detach().float(), None if bias is None else bias.detach().float()
    return Reading(torch.cat(states).float(), projection, getattr(policy.config, "final_logit_softcapping", None))


def compare(policy: Reading, reference: Reading, replies: Sequence[Sequence[int]]) -> tuple[Movement, Movement]:
    """The movement of the reference, whose margins and divergence are 0, and that of the policy.

    Args:
        policy: of the replies.
        reference: of the same replies.
        replies: 2 N token ids in the order of both: chosen, rejected, chosen, rejected, …
    """
    import torch

    device = policy.states.device
    lengths = torch.tensor([len(reply) for reply in replies], device=device)
    targets = torch.tensor([token for reply in replies for token in reply], device=device)
    reply_of = torch.arange(len(replies), device=device).repeat_interleave(lengths)
    columns = [
        _of_tokens(ours, theirs, some)
        for ours, theirs, some in zip(_log_probs(policy), _log_probs(reference), targets.split(ROWS), strict=True)
    ]
    logps, ref_logps, divergences, entropies, ref_entropies = (
        torch.cat(column).double() for column in zip(*columns, strict=True)
    )
    chosen = reply_of % 2 == 0
    ratios = torch.zeros(len(replies), dtype=torch.double, device=device).index_add(0, reply_of, logps - ref_logps)
    margins = ratios[0::2] - ratios[1::2]

    def movement(margins: torch.Tensor, kl: float, logps: torch.Tensor, entropies: torch.Tensor) -> Movement:
        return Movement(
            margin=float(margins.mean()),
            accuracy=100 * float(((margins > 0).double() + (margins == 0).double() / 2).mean()),
            kl=kl,
            chosen_logp=float(logps[chosen].mean()),
            rejected_logp=float(logps[~chosen].mean()),
            entropy=float(entropies[chosen].mean()),
        )

    start = movement(torch.zeros_like(margins), 0.0, ref_logps, ref_entropies)
    return start, movement(margins, float(divergences[chosen].mean()), logps, entropies)


def _log_probs(reading: Reading) -> Iterator[torch.Tensor]:
    """Log-probabilities of the vocabulary, (`ROWS`, V) at a time, in fp32."""
    import torch

    weight, bias = reading.head
    for states in reading.states.split(ROWS):
        logits = torch.nn.functional.linear(states, weight, bias)
        if reading.softcap is not None:
            logits = reading.softcap * torch.tanh(logits / reading.softcap)
        yield logits.log_softmax(-1)


def _of_tokens(policy: torch.Tensor, reference: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of each token log pi, log ref, KL(pi || ref), and the entropies of pi and ref, (M,) each.

    Args:
        policy: (M, V) log-probabilities.
        reference: (M, V) log-probabilities.
        targets: (M,) token ids.
    """
    at_targets = (log_probs.gather(1, targets[:, None])[:, 0] for log_probs in (policy, reference))
    probs = policy.exp()
    return (
        *at_targets,
        (probs * (policy - reference)).sum(-1),
        -(probs * policy).sum(-1),
        -(reference.exp() * reference).sum(-1),
    )
