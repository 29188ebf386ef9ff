"""The sources of corpora: `data/sources.yaml` as typed records.

The file is data, so that a corpus can be added without code; its head explains the keys::

    source = load(Path("data/sources.yaml"))["esconv"]
    source.licence, source.files[0].url
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from attune.runtime.errors import DownloadError, validation_message
from attune.runtime.io import read_yaml


def is_inside(name: str) -> bool:
    """Whether `name` is a relative path that stays below the folder it is read from."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _inside(name: str) -> str:
    if not is_inside(name):
        raise ValueError("must be a relative path without '..'")
    return str(PurePosixPath(name))


Text = Annotated[str, Field(min_length=1)]
Inside = Annotated[Text, AfterValidator(_inside)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+/\S*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

record = dataclass(frozen=True, config=ConfigDict(extra="forbid"))


@record
class SingleFile:
    """A single file; without `url` it has no public source."""

    file: Inside
    url: Url | None
    sha256: Sha256 | None


@record
class Archive:
    """A tar or zip whose `members` below `folder` become files of the same names."""

    url: Url
    sha256: Sha256 | None
    members: Annotated[tuple[Inside, ...], Field(min_length=1)]
    folder: str = ""
    count: Annotated[int, Field(gt=0)] | None = None


@record
class Source:
    """The files, licence and citation of a published corpus."""

    licence: Text
    homepage: Url | None
    citation: Text
    hint: str | None = None
    files: tuple[SingleFile, ...] = ()
    archives: tuple[Archive, ...] = ()


def load(path: Path) -> dict[str, Source]:
    """Read and check the table of sources.

    Raises:
        DownloadError: the file is missing or not YAML, or a key is unknown, missing or malformed (named).
    """
    values = read_yaml(path, DownloadError, "run from the project's root")
    return _check(values, path)


def _check(values: Any, path: Path) -> dict[str, Source]:
    try:
        sources = TypeAdapter(dict[Inside, Source]).validate_python(values)
    except ValidationError as error:
        raise DownloadError("\n".join(_sentence(problem, path) for problem in error.errors())) from None
    for corpus, source in sources.items():
        _check_files(source, f"{path}: {corpus}")
    return sources


def _sentence(problem: Any, path: Path) -> str:
    key = ".".join(str(part) for part in problem["loc"] if part != "[key]") or "(the whole file)"
    match problem["type"]:
        case "missing":
            return f"{path}: key {key} is missing"
        case "unexpected_keyword_argument":
            return f"{path}: key {key} is unknown (value {problem['input']!r})"
        case _:
            return f"{path}: {key} = {problem['input']!r}: {validation_message(problem)}"


def _check_files(source: Source, where: str) -> None:
    """A corpus has files, and no two of them share a name."""
    names = Counter([file.file for file in source.files] + [name for each in source.archives for name in each.members])
    if not names:
        raise DownloadError(f"{where}.files is missing: a corpus needs files or archives")
    twice = sorted(name for name, times in names.items() if times > 1)
    if twice:
        raise DownloadError(f"{where}.files: {', '.join(twice)} is named twice")
