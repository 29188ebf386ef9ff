"""Where the weights of a model or an encoder come from: the keys that sections `model` and `encoder` share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from attune.config.sections.fields import Name, section

NO_FOLDER = {"model": "data/sample/empatheticdialogues", "encoder": "attune/models/encoder.py"}
"""By section, the value of `folder` that means none: a dependency that its stages have anyway, since DVC needs one."""
NO_REVISION = {"model": "main", "encoder": None}
"""By section, the value of `revision` that names none."""


@section
class Weights:
    """A model in Hugging Face layout, and its source, which decides which of the other keys are read.

    hub: `hub_id` and `revision`. folder: `folder`. package: `package`, an installed Python package that holds the
    layout. made: nothing, it is made here. `sha256` pins `model.safetensors`, or by a hash of their hashes its shards.
    """

    name: Name
    source: Literal["hub", "folder", "package", "made"]
    hub_id: Name | None
    revision: Name | None
    folder: Name
    package: Name | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None

    @property
    def origin(self) -> str:
        """What the weights are called at their source."""
        known = {"hub": self.hub_id, "folder": self.folder, "package": self.package, "made": self.name}
        return str(known[self.source])
