"""Log-probabilities of replies under the reference model: computed once, kept in a file, and looked up in training.

The reference does not move, so neither do its log-probabilities. A file passes from round to round: what an earlier
round computed (every chosen reply, and the rejected ones that it knew of) is there already, and only the rest is
computed: the replies behind one context together, so that it is read once. An entry is found by the token ids
of context and reply; the whole file is bound to the base weights, the adapter and the precision that it was computed
with.
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
from attune.models.base_record import origin, quantization
from attune.runtime.arrow_stream import write_table
from attune.runtime.distributed import all_gather, broadcast_from_main, is_main_process, rank, world_size
from attune.runtime.errors import DamagedReference, ModelError
from attune.runtime.io import sha256_of
from attune.training.dpo.packed_forward import bare, pair_output, uses_varlen
from attune.training.dpo.packing import Block, pack

if TYPE_CHECKING:
    from attune.config.schema import Hardware

Pair = Mapping[str, Sequence[int]]
IDENTITY, DIGEST = b"reference", b"sha256"
# Positions in one forward pass, padding aside: enough to keep two cores or a GPU busy, little beside training's
# activations since nothing is kept for a backward pass.
TOKENS_A_PASS = 4096


def identity(base: Path, adapter: Path, hardware: Hardware) -> str:
    """A hash of what decides the reference's log-probabilities: base weights, quantization, adapter, device, dtype."""
    source, commit = origin(base)
    held = quantization(base)
    files = sorted(Path(source).glob("*.safetensors")) if commit is None else []
    files += [adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]
    named = f"{commit and (source, commit)} {hardware.device} {hardware.dtype}" + (f" {held}" if held else "")
    digest = hashlib.sha256(named.encode())
    for file in files:
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()


def key(context: Sequence[int], reply: Sequence[int]) -> str:
    """The name of a reply behind a context: a hash of both token sequences."""
    ids = array("q", [len(context), *context, *reply])
    return hashlib.sha256(ids.tobytes()).hexdigest()[:32]


def read(path: Path, reference: str) -> dict[str, float]:
    """Key to log-probability (nats, summed over the reply's tokens).

    Raises:
        ModelError: the file was computed with another reference than `reference`.
        DamagedReference: it is cut short or has changed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        logps = dict(zip(table["key"].to_pylist(), table["logp"].to_pylist(), strict=True))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DamagedReference(f"{path} cannot be read ({error})") from None
    metadata = table.schema.metadata or {}
    found = metadata.get(IDENTITY, b"").decode()
    if found != reference:
        raise ModelError(
            f"{path} holds the log-probabilities of another reference model ({found[:12] or 'unnamed'}, not "
            f"{reference[:12]}): base model, adapter, device or precision changed; run the rounds again from the first"
        )
    if metadata.get(DIGEST, b"").decode() != _digest(logps):
        raise DamagedReference(f"{path} has changed since it was written")
    return logps


def _digest(logps: Mapping[str, float]) -> str:
    """Of keys and values as the file has them: a flipped byte may give another number and no error."""
    values = array("f", logps.values()).tobytes()
    return hashlib.sha256("".join(logps).encode() + values).hexdigest()


def write(path: Path, reference: str, logps: Mapping[str, float]) -> None:
    """Write `logps` to `path` whole or not at all."""
    import pyarrow as pa

    metadata = {IDENTITY: reference.encode(), DIGEST: _digest(logps).encode()}
    schema = pa.schema([("key", pa.string()), ("logp", pa.float32())], metadata=metadata)
    write_table(path, pa.table({"key": list(logps), "logp": list(logps.values())}, schema=schema))


def complete(
    model: Any, pairs: Iterable[Pair], path: Path, earlier: Path | None, reference: str, hardware: Hardware, pad_id: int
) -> dict[str, float]:
    """The log-probabilities of all replies of `pairs`, computing those that neither file has.

    Several ranks compute passes in turn, the same ones as one process; the first writes the file.

    Args:
        model: the reference, `prepare`d, with its adapter active.
        pairs: of `encode_pair`.
        path: where they are kept, also while this runs: what a killed run computed is not computed again.
        earlier: the file of the round before, where there is one.
        reference: of `identity`.
        hardware: precision, and `save_every`, the passes between two writes.
        pad_id: fills rows.

    Returns:
        Key to log-probability, those of `earlier` among them.
    """
    import torch
    from tqdm import tqdm

    known = read(earlier, reference) if earlier else {}
    # Passes are made of what the earlier round lacks, not of what is left after a kill: a reply then meets the same
    # others in its pass, and its value is the same to the bit.
    passes = _passes(_missing(pairs, known))
    known |= broadcast_from_main(lambda: _kept(path, reference))
    was_training = model.training
    model.eval()
    with torch.no_grad(), autocast(hardware), tqdm(total=len(passes), desc="reference", unit="pass") as bar:
        # Without a pass, too, the file is written.
        for start in range(0, max(len(passes), 1), hardware.save_every * world_size()):
            part = passes[start : start + hardware.save_every * world_size()]
            own: dict[str, float] = {}
            for blocks in part[rank() :: world_size()]:
                own |= _log_probs(model, blocks, known, hardware, pad_id)
                bar.update(world_size())
            found = {name: value for one in all_gather(own) for name, value in one.items()}
            # In the order of one process, in which the file has them.
            known |= {name: found[name] for blocks in part for name in _keys(blocks) if name in found}
            if is_main_process():
                write(path, reference, known)
    model.train(was_training)
    return known


def _log_probs(
    model: Any, blocks: Sequence[Block], known: Mapping[str, float], hardware: Hardware, pad_id: int
) -> dict[str, float]:
    """Key to log-probability of the replies of a pass, nothing where all of them are known."""
    if known.keys() >= set(_keys(blocks)):
        return {}
    batch = pack(blocks, pad_id, uses_varlen(bare(model)))
    output = pair_output(bare(model), {name: one.to(hardware.device) for name, one in batch.items()})
    assert output.log_probs is not None
    return dict(zip(_keys(blocks), output.log_probs.sum(dim=1).tolist(), strict=True))


def _keys(blocks: Sequence[Block]) -> list[str]:
    return [key(block.context, reply) for block in blocks for reply in block.replies]


def _kept(path: Path, reference: str) -> dict[str, float]:
    """What a killed run has computed; nothing, and a word of it, where the file is not whole."""
    try:
        return read(path, reference) if path.is_file() else {}
    except DamagedReference as error:
        print(f"{error}: computing it anew", file=sys.stderr)
        return {}


def _missing(pairs: Iterable[Pair], known: Mapping[str, float]) -> list[Block]:
    """What is to be computed: a block for each context, with its replies that are not known, each once."""
    replies: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for pair in pairs:
        context = tuple(pair["prompt_ids"])
        for name in ("chosen_ids", "rejected_ids"):
            if key(context, pair[name]) not in known:
                replies.setdefault(context, {})[tuple(pair[name])] = None
    return [Block(context, list(found)) for context, found in replies.items()]


def _passes(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks of similar length together, the longest first, up to `TOKENS_A_PASS`."""
    lengths = [len(block) for block in blocks]
    return [[blocks[i] for i in batch] for batch in batches_by_tokens(lengths, TOKENS_A_PASS)]


def with_reference(pairs: Sequence[Pair], logps: Mapping[str, float]) -> list[dict[str, Any]]:
    """The pairs with the columns that TRL reads: `ref_chosen_logps` and `ref_rejected_logps`.

    Raises:
        ModelError: a reply has no entry; names the pair and the reply.
    """
    rows: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs):
        row: dict[str, Any] = dict(pair)
        for name in ("chosen", "rejected"):
            found = logps.get(key(pair["prompt_ids"], pair[f"{name}_ids"]))
            if found is None:
                raise ModelError(
                    f"pair {number}: the reference's log-probability of the {name} reply is missing (token ids "
                    f"{list(pair[f'{name}_ids'])[:8]} behind a context of {len(pair['prompt_ids'])} tokens): the pairs "
                    "are not those that it was computed for"
                )
            row[f"ref_{name}_logps"] = found
        rows.append(row)
    return rows


def require_reference(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Check that every pair has its columns of `with_reference`.

    Raises:
        ModelError: one has not; names it.
    """
    for number, pair in enumerate(pairs):
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if pair.get(name) is None or not math.isfinite(pair[name]):
                raise ModelError(f"pair {number} has no {name}: compute the reference's log-probabilities first")
