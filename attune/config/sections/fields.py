"""Types of single keys of `params.yaml`, and paths that are values of keys."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

# Optimizer steps between two points of a training curve.
LOGGING_STEPS = 5
# Folders of the models, and the placeholder of a key that names a dependency: a DVC dependency cannot be null.
ROUNDS = Path("models/dpo")
BASE = "models/base"
DBT = "models/dbt"
DIALOGUES = "data/dialogues"
RULES = ("opposite_emotion", "dbt", "counselling")
# The value of corpus.local_dir that means none.
NO_LOCAL_DIR = "data/sources.yaml"
# Preference rules that need the labels of dialogues.
LABEL_RULES = ("opposite_emotion",)
# Readers whose file may have any name; of these, the readers whose columns may have any names.
FILE_READERS = ("annomi", "messages", "mi", "ufjf")
COLUMN_READERS = ("mi",)
LIBRARY = Path(__file__).parents[2]

Positive = Annotated[int, Field(gt=0)]
Passes = Annotated[float, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Scheduler = Literal["cosine", "linear", "constant"]
Name = Annotated[str, Field(min_length=1)]


def modules(package: str, function: str, record: str) -> list[str]:
    """The modules of `attune/<package>` whose `function` returns the `record`."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted((LIBRARY / package).glob("*.py"))}
    return [stem for stem, text in texts.items() if f"\ndef {function}(" in text and record in text]


def _module(package: str, function: str, record: str, known: Iterable[str] = ()) -> AfterValidator:
    """A name in `known`, or the name of a module of `attune/<package>` whose `function` returns the `record`.

    Adding a file is enough to register a module. The file is searched as text, not imported.
    """

    def check_name(name: str) -> str:
        if name not in (names := [*known, *modules(package, function, record)]):
            raise ValueError(f"none of {', '.join(names)}; docs/extend.md adds one to attune/{package}")
        return name

    return AfterValidator(check_name)


Reader = Annotated[str, _module("corpora/readers", "read", "Dialogue")]
Rule = Annotated[str, _module("pairs", "build", "Pair", RULES)]


def rules() -> list[str]:
    """The preference rules that there are."""
    return [*RULES, *modules("pairs", "build", "Pair")]


section = dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
