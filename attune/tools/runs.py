"""Runs to compare, and how their files are read: the working tree, a revision with DVC's cache, a folder, a record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.config.schema import PROBES
from attune.report.results import (
    MMLU,
    TEXT,
    data_file,
    metrics_file,
    mmlu_file,
    of_replies,
    pairs_file,
    quality_file,
    signature_file,
)
from attune.report.tables import Metrics, mmlu_columns
from attune.runtime.errors import UserError
from attune.runtime.io import read_yaml

if TYPE_CHECKING:
    import pandas as pd

# Keys of signatures that count, name the model or name versions, which move last digits at most.
APART = (
    *("examples", "epitome_examples", "preference_examples", "references", "torch", "transformers", "engine"),
    *("model", "commit", "adapter", "quantization", "prompts_cut"),
)
# Scorer to how the names of its metrics begin; all others are of `text`.
SCORED = {
    "epitome": ("diff_", "level_"), "dbt": ("dbt_",), "behaviour": ("behaviour_",), MMLU: (MMLU, "answer_"),
}  # fmt: skip
PREFERENCE = "preference_accuracy"
PARAMS = "params.yaml"
# The scores by example of finished records, ignored by Git.
RECORDED_SCORES = Path(".cache/records")


@dataclass(frozen=True)
class Run:
    """A run to compare: its name and params, and how its files are read.

    `read` gives the bytes of a path, None if it is not there; a record has no files but `metrics` by variant.
    """

    name: str
    params: Mapping[str, Any]
    read: Callable[[Path], bytes | None]
    recorded: Mapping[str, Any] | None = None
    command: str = ""  # that made a record

    def keys(self, section: str) -> list[str]:
        """The keys of a section of the params."""
        return list(self.params.get(section) or {})

    def object(self, path: Path) -> dict[str, Any]:
        """A JSON file; empty if it is not there.

        Raises:
            UserError: it is no JSON object.
        """
        content = self.read(path)
        try:
            return dict(json.loads(content)) if content is not None else {}
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} of {self.name} cannot be read ({error})") from None

    def metrics(self, variant: str) -> Metrics:
        """The metrics of a variant by all scorers and probes, and MMLU."""
        if self.recorded is not None:
            mmlu = mmlu_columns(self.recorded.get("mmlu", {}).get(variant, {}), {})[0]
            return dict(self.recorded["metrics"].get(variant, {})) | mmlu
        found = mmlu_columns(self.object(mmlu_file(variant).path), {})[0]
        for scorer in of_replies(self.keys("scorers")):
            found |= self.object(metrics_file(scorer, variant).path)
        for probe in PROBES if variant in self.keys("probed") else ():
            found |= self.object(metrics_file(probe, variant).path)
        return found

    def signature(self, scorer: str, variant: str) -> dict[str, Any]:
        """What explains the metrics of a scorer; of a record, of MMLU or of all scorers of replies."""
        if self.recorded is not None and scorer == MMLU:
            return dict(self.recorded.get("mmlu_signature", {}).get(variant, {}))
        if self.recorded is not None:
            return dict(self.recorded.get("signature", {}).get(variant, {}))
        return self.object(signature_file(scorer, variant).path)

    def others(self) -> dict[str, float]:
        """The numbers of a run that are of no variant, as `pairs e1 longer_rejected`."""
        if self.recorded is not None:
            parts = {"data": self.recorded.get("data", {})}
            parts |= {f"pairs {key}": values for key, values in self.recorded.get("pairs", {}).items()}
            return {f"{name} {key}": value for name, values in parts.items() for key, value in values.items()}
        files = {"data": data_file().path}
        files |= {f"pairs {key}": pairs_file(key).path for key in self.keys("rounds")}
        files |= {f"classifier {key}": quality_file(key).path for key in self.keys("classifiers")}
        return {f"{name} {key}": value for name, path in files.items() for key, value in self.object(path).items()}

    def table(self, path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
        """A parquet file; None if it is not there.

        Raises:
            UserError: it is no parquet file, or lacks a column.
        """
        import io

        import pandas as pd
        from pyarrow import ArrowException

        content = self.read(path)
        try:
            return (
                None
                if content is None
                else pd.read_parquet(io.BytesIO(content), columns=list(columns) if columns else None)
            )
        except (ArrowException, ValueError) as error:
            raise UserError(f"{path} of {self.name} cannot be read ({error})") from None


def scorer_of(metric: str) -> str:
    """The scorer that measures a metric of replies or of MMLU."""
    return next((scorer for scorer, starts in SCORED.items() if metric.startswith(starts)), TEXT)


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys of signatures by which the same replies would get other numbers; none where a side has no signature."""
    if not before or not after:
        return []
    return [key for key in after if key in before and key not in APART and before[key] != after[key]]


def folder(path: Path, name: str | None = None) -> Run:
    """The run in a folder.

    Raises:
        UserError: it has no params.yaml.
    """

    def read(file: Path) -> bytes | None:
        return (path / file).read_bytes() if (path / file).is_file() else None

    params = read_yaml(path / PARAMS, UserError, "name a revision, the folder of a run, or a record")
    return Run(name or str(path), params, read)


def revision(name: str) -> Run:
    """The run of a revision, with what DVC's cache has of it.

    Raises:
        UserError: Git does not know it, or it has no params.yaml.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError
    from ruamel.yaml import YAML

    files = DVCFileSystem(rev=name)

    # A file of a revision never changes, and several readers ask for the same scores and replies.
    @cache
    def read(file: Path) -> bytes | None:
        try:
            with files.open(file.as_posix(), "rb") as stream:
                return bytes(stream.read())
        except RevError as error:
            raise UserError(f"{name} is no revision, no folder of a run and no record: {error}") from None
        except (FileNotFoundError, DvcException):
            return None

    content = read(Path(PARAMS))
    if content is None:
        raise UserError(f"{name} has no {PARAMS}")
    return Run(name, YAML(typ="safe").load(content.decode()), read)


def record(path: Path, here: Run) -> Run:
    """A record of `attune record`; of several models that of this run.

    Its scores by example are in `.cache/records/` on the machine that recorded it.

    Raises:
        UserError: it is no such file.
    """
    whole: dict[str, Any] = {}
    with suppress(UserError):
        whole = Run(str(path), {}, lambda file: file.read_bytes()).object(path)
    models = whole.get("models", {"": whole})
    model = str((here.params.get("model") or {}).get("name"))
    part: dict[str, Any] = models.get(model) or next(iter(models.values()), {})
    if "metrics" not in part:
        raise UserError(f"{path} is no record with metrics: `python -m attune record` writes one")
    scores = RECORDED_SCORES / str(whole.get("name", path.stem)) / (model if model in models else "")

    def read(file: Path) -> bytes | None:
        kept = scores / file.parent.name / file.name
        return kept.read_bytes() if file.parent.parent.name == "scores" and kept.is_file() else None

    return Run(str(path), here.params, read, part, str(whole.get("command", "")))


def other_run(what: str, here: Run) -> Run:
    """The run that an argument names: a record, the folder of a run, else a revision.

    Raises:
        UserError: it is none of them.
    """
    path = Path(what)
    if path.is_file():
        return record(path, here)
    return folder(path) if (path / PARAMS).is_file() else revision(what)
