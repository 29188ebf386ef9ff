"""A study: a grid of experiments in a file of `studies/`, and the experiments that it stands for."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from attune.config.schema import Name, section
from attune.runtime.errors import UserError
from attune.runtime.io import read_yaml

STUDIES = Path("studies")


@section
class Scale:
    """A size of a study: what all experiments override, what each varies, and the seeds of each."""

    overrides: list[str]
    grid: dict[str, list[str | int | float]]
    seeds: Annotated[list[int], Field(min_length=1)]


@section
class Shown:
    """What is read off the experiments: `metrics` of `variants`; a figure over the param `x`, or a table alone."""

    kind: Literal["table", "lines", "spread"]
    variants: Annotated[list[Name], Field(min_length=1)]
    metrics: Annotated[list[Name], Field(min_length=1)]
    x: str | None = None


@section
class Study:
    """A file of `studies/`."""

    title: Name
    source: Name
    targets: list[Name]
    shown: Shown
    scales: dict[Literal["tiny", "paper"], Scale]


class Experiment:
    """A point of the grid, the seed among its keys; all that it overrides, and the name that follows from that."""

    def __init__(self, study: str, point: Mapping[str, str], rest: Mapping[str, str], targets: Sequence[str]) -> None:
        self.point = dict(point)
        self.overrides = {**rest, **point}
        key = json.dumps([sorted(self.overrides.items()), sorted(targets)])
        self.name = f"{study}-{hashlib.blake2b(key.encode(), digest_size=5).hexdigest()}"

    @property
    def arguments(self) -> list[str]:
        """The overrides as Hydra takes them."""
        return [f"{key}={value}" for key, value in self.overrides.items()]


def read(name: str, folder: Path = STUDIES) -> Study:
    """Read and check a study.

    Raises:
        UserError: there is none of this name, or a key of it is missing, unknown or does not fit.
    """
    path = folder / f"{name}.yaml"
    known = ", ".join(sorted(one.stem for one in folder.glob("*.yaml"))) or "none"
    # Through JSON, as the params.
    values = json.dumps(read_yaml(path, UserError, f"studies: {known}"))
    try:
        study = TypeAdapter(Study).validate_json(values)
    except ValidationError as error:
        found = [(".".join(map(str, one["loc"])), one["msg"].lower()) for one in error.errors()]
        raise UserError("\n".join(f"{path}: {key or 'the file'}: {text}" for key, text in found)) from None
    if study.shown.kind != "table" and any(study.shown.x not in one.grid for one in study.scales.values()):
        raise UserError(f"{path}: shown.x = {study.shown.x!r} is no key of the grid of every scale")
    return study


def experiments(name: str, study: Study, scale: str, overrides: Sequence[str]) -> list[Experiment]:
    """Every point of the grid with every seed, in the grid's order.

    Args:
        name: of the study.
        study: its file.
        scale: a key of its `scales`.
        overrides: `key=value`; each replaces what the scale or its grid says of the key.

    Raises:
        UserError: an override has no value, or the study has no such scale.
    """
    if scale not in study.scales:
        raise UserError(f"{name} has no scale {scale}: {', '.join(study.scales)}")
    size, given = study.scales[scale], _pairs(overrides)
    axes: dict[str, Sequence[Any]] = {**size.grid, "seed": size.seeds}
    axes |= {key: [given[key]] for key in axes.keys() & given.keys()}
    found = []
    for values in itertools.product(*axes.values()):
        point = {key: str(value) for key, value in zip(axes, values, strict=True)}
        found.append(Experiment(name, point, _pairs(size.overrides) | given, study.targets))
    return found


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    if wrong := [one for one in overrides if "=" not in one]:
        raise UserError(f"{wrong[0]!r} is no override: key=value is")
    return dict(one.split("=", 1) for one in overrides)
