"""Types of single keys of `params.yaml`, and paths that are values of keys."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

# Optimizer steps between two points of a training curve.
LOGGING_STEPS = 5
# Folders of the models, and the placeholder of a key that names a dependency: a DVC dependency cannot be null.
ROUNDS = Path("models/dpo")
BASE = "models/base"
DBT = "models/dbt"
EPITOME = "models/epitome"
DIALOGUES = "data/dialogues"
RULES = ("opposite_emotion", "dbt", "epitome", "counselling", "policy", "file")
# The files that rule file reads, and those of replies that were made elsewhere.
PAIR_FILES = (".jsonl", ".json", ".parquet")
REPLY_FILES = (".jsonl", ".json", ".csv", ".parquet")
# The value of corpus.local_dir that means none.
NO_LOCAL_DIR = "data/sources.yaml"
# Preference rules that need the labels of dialogues.
LABEL_RULES = ("opposite_emotion", "random")
# Readers whose file may have any name; of these, the readers whose columns may have any names.
FILE_READERS = ("annomi", "messages", "mi", "ufjf")
COLUMN_READERS = ("mi",)
LIBRARY = Path(__file__).parents[2]
# The value of lora.target_modules that means every linear layer but the head.
ALL_LINEAR = "all-linear"

Positive = Annotated[int, Field(gt=0)]
Passes = Annotated[float, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Scheduler = Literal["cosine", "linear", "constant"]
AtLeastZero = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
Address = Annotated[str, Field(pattern="^https?://")]


def named_file(path: str) -> Path | None:
    """The file that a key names, or None where it is the placeholder `DIALOGUES`."""
    return None if path == DIALOGUES else Path(path)


def modules(package: str, function: str) -> list[str]:
    """The modules of `attune/<package>` that have `function`, defined there or imported."""
    paths = sorted((LIBRARY / package).glob("*.py"))
    return [path.stem for path in paths if function in top_level_names(path)]


def _module(package: str, function: str, known: Iterable[str] = ()) -> AfterValidator:
    """A name in `known`, or the name of a module of `attune/<package>` that has `function`, defined there or imported.

    Adding a file is enough to register a module. The file is parsed, not imported, which may take seconds.
    """

    def check_name(name: str) -> str:
        """`name`, if it is known or a module's."""
        path = LIBRARY / package / f"{name}.py"
        if name in known or (name.isidentifier() and function in top_level_names(path)):
            return name
        raise ValueError(
            f"none of {', '.join([*known, *modules(package, function)])}; docs/extend.md adds one to attune/{package}, "
            f"a module with {function}"
        )

    return AfterValidator(check_name)


def top_level_names(path: Path) -> set[str]:
    """The functions and classes that a module defines, and the names that it imports or assigns; none if it is missing.

    Raises:
        ValueError: the file is no valid Python.
    """
    try:
        body = ast.parse(path.read_bytes()).body if path.is_file() else []
    except SyntaxError as problem:
        raise ValueError(f"{path}:{problem.lineno} is no valid Python: {problem.msg}") from None
    names: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
            case ast.Assign(targets=targets):
                names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                names.add(name)
    return names


def _share_or_steps(steps: float) -> float:
    if steps >= 1 and steps != int(steps):
        raise ValueError("a whole number of steps, or a share of them below 1")
    return steps


def _adapted(modules: Any) -> Any:
    if modules == ALL_LINEAR:
        return modules
    if not isinstance(modules, list) or not modules or not all(isinstance(name, str) and name for name in modules):
        raise ValueError(f"{ALL_LINEAR}, or a list of names of linear layers such as [q_proj, v_proj]")
    if "lm_head" in modules:
        raise ValueError("an adapter on lm_head would never be trained: name it in lora.modules_to_save")
    return modules


Warmup = Annotated[float, Field(ge=0), AfterValidator(_share_or_steps)]
# Before pydantic, which would have a sentence for each side of the union.
Modules = Annotated[str | list[str], BeforeValidator(_adapted)]
Reader = Annotated[str, _module("corpora/readers", "read")]
Rule = Annotated[str, _module("pairs", "build", RULES)]


def rules() -> list[str]:
    """The preference rules that there are."""
    return [*RULES, *modules("pairs", "build")]


section = dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
