"""The terms of licences for those who use a model: `data/licences.yaml` as typed records.

The file is data, so that a licence can be added without code; its head explains the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from attune.runtime.errors import DataError
from attune.runtime.io import read_yaml

LICENCES = Path("data/licences.yaml")
NOT_STATED = "not stated"
"""The licence in `data/manifest.json` of files whose licence is unknown."""

Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Licence:
    """A row of the table."""

    hub_id: Text
    terms: Text
    public: Annotated[bool, Field(strict=True)]


def load(path: Path = LICENCES) -> dict[str, Licence]:
    """Read and check the table.

    Raises:
        DataError: the file is missing or not YAML, or a key is unknown, missing or of another type (named).
    """
    values = read_yaml(path, DataError, "run from the project's root")
    try:
        return TypeAdapter(dict[str, Licence]).validate_python(values)
    except ValidationError as error:
        problems = (
            f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}" for problem in error.errors()
        )
        raise DataError("\n".join(problems)) from None


def terms(licences: Mapping[str, Licence], name: str, whose: str) -> Licence:
    """The row of the licence `name`; `whose` names what it covers, for the error.

    Raises:
        DataError: the table has no such row.
    """
    if name not in licences:
        raise DataError(
            f"{whose}: licence {name!r} has no row in {LICENCES}: read what it requires of models trained "
            "on the data, and add a row"
        )
    return licences[name]
