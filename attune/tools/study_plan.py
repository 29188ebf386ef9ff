"""A study: a file of `studies/` with the overrides of its experiments, and the metrics and figure to report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from attune.config.sections.fields import Name, section
from attune.runtime.errors import UserError
from attune.runtime.io import read_yaml

STUDIES = Path("studies")
SEED = "seed"


@section
class Shown:
    """The results to report: `metrics` of `variants`, as a figure over the param `x` or only as a table."""

    kind: Literal["table", "lines", "spread"]
    variants: Annotated[list[Name], Field(min_length=1)]
    metrics: Annotated[list[Name], Field(min_length=1)]
    x: str | None = None


@section
class Study:
    """A file of `studies/`; `scales` are lists of overrides as `dvc exp run -S` takes them."""

    title: Name
    source: Name
    targets: list[Name]
    shown: Shown
    scales: dict[Literal["small", "paper"], list[Name]]


@dataclass(frozen=True)
class Grid:
    """The experiments of a study at one scale; DVC queues their product.

    Attributes:
        name: prefix of the names of its experiments; a hash of the targets and of the overrides other than the axes.
        overrides: as `dvc exp run -S` takes them.
        axes: the keys with several values in the study's file, and the seed.
    """

    name: str
    overrides: list[str]
    axes: list[str]


def read(name: str, folder: Path = STUDIES) -> Study:
    """Read and check a study.

    Raises:
        UserError: there is no such file, or a key is missing, unknown or does not fit.
    """
    path = folder / f"{name}.yaml"
    known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
    # Through JSON, as the params.
    values = json.dumps(read_yaml(path, UserError, f"studies: {known}"))
    try:
        study = TypeAdapter(Study).validate_json(values)
    except ValidationError as error:
        problems = [(".".join(map(str, problem["loc"])), problem["msg"].lower()) for problem in error.errors()]
        raise UserError("\n".join(f"{path}: {key or 'the file'}: {text}" for key, text in problems)) from None
    for scale in study.scales:
        axes = grid(name, study, scale, []).axes
        if study.shown.kind != "table" and study.shown.x not in axes:
            raise UserError(f"{path}: shown.x = {study.shown.x!r} is no axis of scale {scale}: {', '.join(axes)}")
    return study


def grid(name: str, study: Study, scale: str, overrides: Sequence[str]) -> Grid:
    """The experiments of a scale.

    Args:
        name: of the study.
        study: its file.
        scale: a key of its `scales`.
        overrides: `key=value`; each replaces that of the scale with the same key.

    Raises:
        UserError: an override has no value, or the study has no such scale.
    """
    if scale not in study.scales:
        raise UserError(f"{name} has no scale {scale}: {', '.join(study.scales)}")
    defaults = _pairs(study.scales[scale], f"{STUDIES / name}.yaml: scales.{scale}: ")
    values = defaults | _pairs(overrides)
    axes = [key for key, text in defaults.items() if "," in text or key == SEED]
    fixed = {key: text for key, text in values.items() if key not in axes}
    digest = hashlib.blake2b(json.dumps([sorted(fixed.items()), sorted(study.targets)]).encode(), digest_size=4)
    return Grid(f"{name}-{digest.hexdigest()}", [f"{key}={text}" for key, text in values.items()], axes)


def _pairs(overrides: Sequence[str], where: str = "") -> dict[str, str]:
    if wrong := [override for override in overrides if "=" not in override]:
        raise UserError(f"{where}{wrong[0]!r} is no override: write key=value")
    return dict(override.split("=", 1) for override in overrides)
