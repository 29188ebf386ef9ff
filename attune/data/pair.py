"""The preference pair, which stage `pairs` writes and stage `dpo` reads."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from attune.data.dialogue import Turn, turn_list_type

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Pair:
    """A preference: `chosen` is the human reply to `prompt`, `rejected` is drawn or ranked by the rule.

    `future_rejected`, in the first round, holds the rejected replies of the later rounds, so that the reference model
    reads a prompt once for the replies of all rounds.
    """

    id: str
    epoch: int
    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    label: str
    rejected_label: str
    rejected_id: str
    future_rejected: tuple[str, ...] = field(default=(), kw_only=True)


def schema_of(kind: type[Any]) -> pa.Schema:
    """The Arrow schema of a class of pairs: a column for each field."""
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int32(), "float": pa.float64(), "tuple[Turn, ...]": turn_list_type(),
             "tuple[str, ...]": pa.list_(pa.string())}  # fmt: skip
    return pa.schema([(field.name, types[str(field.type)]) for field in fields(kind)])
