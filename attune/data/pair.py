"""The preference pair: the schema of what stage `pairs` writes and stage `dpo` reads."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from attune.data.dialogue import Turn, turn_list_type

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Pair:
    """One preference: `chosen` is the human reply to `prompt`, `rejected` a reply to someone who feels the opposite.

    `future_rejected`, in the first round, is what the later ones reject: the reference then reads all of it behind one context.
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
    """The Arrow schema of pairs: their fields; `prompt` is a list of role, text, act."""
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int32(), "float": pa.float64(), "tuple[Turn, ...]": turn_list_type(),
             "tuple[str, ...]": pa.list_(pa.string())}  # fmt: skip
    return pa.schema([(field.name, types[str(field.type)]) for field in fields(kind)])
