"""Log-probabilities of replies under the reference model: computed once, kept in a file, looked up in training.

The reference is frozen, so its log-probabilities never change. The file passes from round to round: what earlier rounds
computed (all chosen replies, and the rejected replies that they knew) is in it, and only the rest is computed, with all
replies to a context in one document.

A reply is identified by the token ids of context and reply. The whole file is bound to the base weights, the adapter
and the precision that it was computed with.
"""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.compute.batching import batches_by_tokens
from attune.compute.process import autocast
from attune.cpu.optimize import uses_varlen
from attune.models.base_record import origin, quantization
from attune.runtime.arrow_stream import write_table
from attune.runtime.distributed import all_gather, broadcast_from_main, is_main_process, rank, world_size
from attune.runtime.errors import DamagedReference, ModelError
from attune.runtime.io import sha256_of
from attune.training.common.packed_forward import packed_output, unwrap_peft
from attune.training.common.packing import Document, pack

if TYPE_CHECKING:
    from attune.config.schema import Hardware

Pair = Mapping[str, Sequence[int]]
# The columns that TRL reads.
REFERENCE_KEYS = ("ref_chosen_logps", "ref_rejected_logps")
IDENTITY, DIGEST = b"reference", b"sha256"  # keys of the file's metadata
# Tokens of one forward pass, without padding: enough to keep two cores or a GPU busy. Without a backward pass it takes
# little memory compared with training.
TOKENS_PER_PASS = 4096


def identity(base: Path, adapter: Path, hardware: Hardware) -> str:
    """A hash of all that the reference's log-probabilities depend on.

    Args:
        base: folder of the base model: its weights and quantization count.
        adapter: folder of the reference's adapter.
        hardware: device and dtype count.
    """
    source, commit = origin(base)
    quantized = quantization(base)
    files = sorted(Path(source).glob("*.safetensors")) if commit is None else []
    files += [adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]
    settings = f"{commit and (source, commit)} {hardware.device} {hardware.precision}" + (
        f" {quantized}" if quantized else ""
    )
    digest = hashlib.sha256(settings.encode())
    for file in files:
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()


def reply_key(context: Sequence[int], reply: Sequence[int]) -> str:
    """A hash of the token ids of a context and a reply to it, which names the reply in the file."""
    ids = array("q", [len(context), *context, *reply])
    return hashlib.sha256(ids.tobytes()).hexdigest()[:32]


def read(path: Path, reference: str) -> dict[str, float]:
    """The log-probabilities in a file: `reply_key` to nats, summed over the tokens of the reply.

    Args:
        path: parquet file of `write`.
        reference: the `identity` that the file must have.

    Raises:
        ModelError: the file was computed with another reference.
        DamagedReference: it is truncated or has changed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        logps = dict(zip(table["key"].to_pylist(), table["logp"].to_pylist(), strict=True))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DamagedReference(f"{path} cannot be read ({error})") from None
    metadata = table.schema.metadata or {}
    computed_with = metadata.get(IDENTITY, b"").decode()
    if computed_with != reference:
        raise ModelError(
            f"{path} holds the log-probabilities of another reference model ({computed_with[:12] or 'unnamed'}, not "
            f"{reference[:12]}): base model, adapter, device or precision changed; run the rounds again from the first"
        )
    if metadata.get(DIGEST, b"").decode() != _digest(logps):
        raise DamagedReference(f"{path} has changed since it was written")
    return logps


def _digest(logps: Mapping[str, float]) -> str:
    """A hash of keys and values. Parquet does not check values: a flipped byte may read as another number."""
    values = array("f", logps.values()).tobytes()
    return hashlib.sha256("".join(logps).encode() + values).hexdigest()


def write(path: Path, reference: str, logps: Mapping[str, float]) -> None:
    """Write `logps` to `path` atomically.

    Args:
        path: parquet file with the columns `key` and `logp`.
        reference: of `identity`.
        logps: `reply_key` to nats.
    """
    import pyarrow as pa

    metadata = {IDENTITY: reference.encode(), DIGEST: _digest(logps).encode()}
    schema = pa.schema([("key", pa.string()), ("logp", pa.float32())], metadata=metadata)
    write_table(path, pa.table({"key": list(logps), "logp": list(logps.values())}, schema=schema))


def complete(
    model: Any, pairs: Iterable[Pair], path: Path, earlier: Path | None, reference: str, hardware: Hardware, pad_id: int
) -> dict[str, float]:
    """The log-probabilities of all replies of `pairs`; computes those that neither file has, and writes `path`.

    The passes, which are those of one process, are distributed over the ranks; the main process writes.

    Args:
        model: the reference, after `prepare`, with its adapter active.
        pairs: of `encode_pair`.
        path: the file to write, also while this runs: what a killed run has computed is not computed again.
        earlier: the file of the previous round, or None.
        reference: of `identity`.
        hardware: precision, and `save_every`, the number of passes between two writes.
        pad_id: token id of the padding.

    Returns:
        `reply_key` to nats, with the entries of `earlier`.
    """
    import torch
    from tqdm import tqdm

    logps = read(earlier, reference) if earlier else {}
    # Planned before the entries of a killed run are added: a reply then has the same neighbours in its pass as in an
    # undisturbed run, and its value is the same to the bit.
    passes = _passes(_missing(pairs, logps))
    logps |= broadcast_from_main(lambda: _resumed(path, reference))
    was_training = model.training
    model.eval()
    with torch.no_grad(), autocast(hardware), tqdm(total=len(passes), desc="reference", unit="pass") as bar:
        # At least once, so that the file is written without a pass too.
        for start in range(0, max(len(passes), 1), hardware.save_every * world_size()):
            part = passes[start : start + hardware.save_every * world_size()]
            of_rank: dict[str, float] = {}
            for documents in part[rank() :: world_size()]:
                of_rank |= _log_probs(model, documents, logps, hardware, pad_id)
                bar.update(world_size())
            computed = {key: logp for of_one_rank in all_gather(of_rank) for key, logp in of_one_rank.items()}
            # In the order of one process, so that the file does not depend on the number of ranks.
            logps |= {key: computed[key] for documents in part for key in _keys(documents) if key in computed}
            if is_main_process():
                write(path, reference, logps)
    model.train(was_training)
    return logps


def _log_probs(
    model: Any, documents: Sequence[Document], logps: Mapping[str, float], hardware: Hardware, pad_id: int
) -> dict[str, float]:
    """The log-probabilities of the replies of one pass; empty if `logps` has all of them."""
    if logps.keys() >= set(_keys(documents)):
        return {}
    policy = unwrap_peft(model)
    batch = pack(documents, pad_id, uses_varlen(policy))
    output = packed_output(policy, {name: tensor.to(hardware.device) for name, tensor in batch.items()})
    assert output.log_probs is not None
    return dict(zip(_keys(documents), output.log_probs.sum(dim=1).tolist(), strict=True))


def _keys(documents: Sequence[Document]) -> list[str]:
    return [reply_key(document.context, reply) for document in documents for reply in document.replies]


def _resumed(path: Path, reference: str) -> dict[str, float]:
    """The results of a killed run; empty, with a message, if its file is damaged."""
    try:
        return read(path, reference) if path.is_file() else {}
    except DamagedReference as error:
        print(f"{error}: recomputing it", file=sys.stderr)
        return {}


def _missing(pairs: Iterable[Pair], logps: Mapping[str, float]) -> list[Document]:
    """A document for each context with replies that `logps` lacks, each reply once."""
    missing: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for pair in pairs:
        context = tuple(pair["prompt_ids"])
        for side in ("chosen_ids", "rejected_ids"):
            if reply_key(context, pair[side]) not in logps:
                missing.setdefault(context, {})[tuple(pair[side])] = None
    return [Document(context, list(replies)) for context, replies in missing.items()]


def _passes(documents: Sequence[Document]) -> list[list[Document]]:
    """Documents of similar length together, the longest first, up to `TOKENS_PER_PASS`."""
    lengths = [len(document) for document in documents]
    return [[documents[i] for i in batch] for batch in batches_by_tokens(lengths, TOKENS_PER_PASS)]


def at_shared_length(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The pair with the longer reply cut to the length of the shorter one, as LD-DPO splits it."""
    shared = min(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
    return {**pair, "chosen_ids": pair["chosen_ids"][:shared], "rejected_ids": pair["rejected_ids"][:shared]}


def with_reference(
    pairs: Sequence[Pair], logps: Mapping[str, float], ld_alpha: float | None = None
) -> list[dict[str, Any]]:
    """The pairs with the columns that TRL reads: `ref_chosen_logps` and `ref_rejected_logps`, in nats.

    Args:
        pairs: of `encode_pair`.
        logps: of `complete`; with `ld_alpha` also of the pairs `at_shared_length`.
        ld_alpha: weight of the tokens beyond the shared length (LD-DPO); None: 1.

    Raises:
        ModelError: a reply has no entry; names the pair and the reply.
    """
    with_columns: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs):
        columns: dict[str, Any] = dict(pair)
        for side, name in zip(("chosen", "rejected"), REFERENCE_KEYS, strict=True):
            columns[name] = _logp(pair, side, number, logps)
            if ld_alpha is not None:
                shared = _logp(at_shared_length(pair), side, number, logps)
                columns[name] = shared + ld_alpha * (columns[name] - shared)
        with_columns.append(columns)
    return with_columns


def _logp(pair: Pair, side: str, number: int, logps: Mapping[str, float]) -> float:
    logp = logps.get(reply_key(pair["prompt_ids"], pair[f"{side}_ids"]))
    if logp is None:
        raise ModelError(
            f"pair {number}: the reference's log-probability of the {side} reply is missing (token ids "
            f"{list(pair[f'{side}_ids'])[:8]} after a context of {len(pair['prompt_ids'])} tokens): the pairs "
            "are not those that it was computed for"
        )
    return logp


def require_reference(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Check that every pair has finite values in the columns of `with_reference`.

    Raises:
        ModelError: a pair has not; names the pair and the column.
    """
    for number, pair in enumerate(pairs):
        for name in REFERENCE_KEYS:
            if pair.get(name) is None or not math.isfinite(pair[name]):
                raise ModelError(f"pair {number} has no {name}: compute the reference's log-probabilities first")
