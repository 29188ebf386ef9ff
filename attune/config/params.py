"""`params.yaml`: reading it, checking it, composing it.

`conf/` composes the values (each key is commented there with unit, range and source), DVC writes them to
`params.yaml`, and a stage reads it whole and hands its function the sections (`attune.config.schema`) that it needs::

    params = load()
    train(adapter, dialogues, params.sft, params.lora, params.hardware, params.seed)

A key that is unknown, missing or out of range is a `ParamsError` that names the key, the value and the file.
`python -m attune params recipe=empo model=tiny` composes `params.yaml` without running anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from attune.config.checks import check_across_keys
from attune.config.schema import Params, Variant
from attune.runtime.errors import ParamsError, validation_message
from attune.runtime.io import read_yaml

PARAMS_FILE = Path("params.yaml")
Value = TypeVar("Value")


def named(values: Mapping[Any, Value], name: str, key: str) -> Value:
    """The value of `name` in the mapping of the params called `key`.

    Raises:
        ParamsError: they give nothing; lists the names that have something.
    """
    if name not in values:
        raise ParamsError(f"{name!r} is none of {key}: {', '.join(values) or 'there are none'}")
    return values[name]


def with_model(params: Params, variant: str) -> Variant:
    """The settings of a variant that has a model.

    Raises:
        ParamsError: there is no such variant, or it has replies alone.
    """
    settings = named(params.variants, variant, "variants")
    if settings.replies_file:
        raise ParamsError(f"variant {variant} has replies made elsewhere ({settings.model}) and no model")
    return settings


def load(path: Path = PARAMS_FILE, source: str | None = None) -> Params:
    """Read and check `path`; errors call it `source`, where that says more than its name.

    Raises:
        ParamsError: the file is missing or is no YAML mapping, a key is unknown, missing or out of range, or a file of
            replies is missing.
    """
    values = read_yaml(path, ParamsError, "run from the project's root, or write it with `make params`")
    params = check(values, source or str(path))
    for name, variant in params.variants.items():
        # DVC would find it after hours of training.
        if variant.replies_file and not variant.replies_file.is_file():
            raise ParamsError(
                f"{source or path}: variants.{name}.model = {variant.model!r}: there is no such file of replies here "
                "(--queue and --temp of DVC copy what Git tracks)"
            )
    return params


def check(values: Any, source: str) -> Params:
    """Check a composed configuration; `source` names where it came from in the errors.

    Raises:
        ParamsError: naming each offending key, its value and `source`.
    """
    try:
        # Through JSON, since in strict mode pydantic takes a dataclass from an object of JSON but not from a dict. What
        # JSON does not have, a date that YAML read out of `2024-01-31`, becomes the string that it was.
        params = TypeAdapter(Params).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ParamsError("\n".join(_sentence(problem, source) for problem in error.errors())) from None
    check_across_keys(params, source)
    return params


def _sentence(problem: Any, source: str) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "(the whole file)"
    match problem["type"]:
        case "missing":
            return f"{source}: key {key} is missing"
        case "unexpected_keyword_argument":
            return f"{source}: key {key} is unknown (value {problem['input']!r})"
        case _:
            return f"{source}: {key} = {problem['input']!r}: {validation_message(problem)}"


def compose(overrides: list[str], target: Path = PARAMS_FILE) -> None:
    """Compose `conf/` with Hydra `overrides` as `dvc exp run -S` does, check the result and write it to `target`.

    Raises:
        ParamsError: a group, option or key does not exist, or a value does not fit.
    """
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException

    trial = target.with_name(f".{target.name}")
    named = " ".join(overrides) or "its defaults"
    try:
        compose_and_dump(trial, str(Path("conf").resolve()), None, "config", str(Path(".dvc").resolve()), overrides)
        load(trial, f"conf/ composed with {named}")
        trial.replace(target)
    except HydraException as error:
        raise ParamsError(f"conf/ does not compose with {named}: {error}") from None
    finally:
        trial.unlink(missing_ok=True)
