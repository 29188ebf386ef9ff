"""A study: a file of `studies/` with the overrides of its experiments, and the metrics and figure to report.

Overrides with several values are axes of a grid. Settings that differ in more than one key have names: each is a list
of overrides, and the axis of their names is `setting`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from attune.config.sections.fields import Name, section
from attune.report.results import metrics_file
from attune.report.tables import VARIANT_COLUMNS
from attune.runtime.errors import UserError
from attune.runtime.io import read_yaml
from attune.tools.runs import scorer_of

STUDIES = Path("studies")
MEANS = {"diff_epitome": ("diff_er", "diff_ex", "diff_ip")}
"""Metrics of a study alone: EmPO's figures 2 and 3 average diff-EPITOME over its mechanisms."""
COLUMNS = VARIANT_COLUMNS | {"diff_epitome": ("diff-EPITOME ↓", 3)}
SEED, SETTING = "seed", "setting"
# Groups of conf/ that params.yaml does not name.
GROUPS = ("recipe", "hardware")
# Two cores in two hours, two cores in a day, the paper's models on a GPU.
Scale = Literal["quick", "small", "paper"]
SMALL: Scale = "small"  # if the command names none
# Part of the name of an experiment, before the number that DVC gives it.
Setting = Annotated[str, Field(pattern="^[a-z0-9_]+(-[a-z0-9_]+)*$")]


@section
class Shown:
    """The results to report: `metrics` of `variants`, whose p-values are corrected together; `also`, without a claim.

    `lines` and `spread` are over the param `x`; `differences` are those of the settings to `reference`, one setting for
    all others or one or several for each, and with `table` those of the variants. With `lines` and `spread` the
    `reference` is the value of `x` that the others are compared with, of all scales or of each, or there is none.
    """

    kind: Literal["table", "lines", "spread", "differences"]
    variants: Annotated[list[Name], Field(min_length=1)]
    metrics: Annotated[list[Name], Field(min_length=1)]
    also: list[Name] = field(default_factory=list)
    x: str | None = None
    reference: float | Setting | dict[Setting, float | Setting | list[Setting]] | None = None

    @property
    def every(self) -> list[str]:
        """All metrics."""
        return [*self.metrics, *self.also]

    @property
    def scorers(self) -> list[str]:
        """Those that measure the metrics."""
        return list(dict.fromkeys(map(scorer_of, self.every)))

    def at(self, scale: str) -> Shown:
        """What is shown at a scale, which may have a reference of its own."""
        if self.x is None or not isinstance(self.reference, dict):
            return self
        return Shown(**vars(self) | {"reference": self.reference.get(scale)})

    @property
    def compared(self) -> str | None:
        """The axis of which `reference` is a value; without one variants are compared."""
        return None if self.reference is None else self.x or SETTING

    @property
    def references(self) -> set[str]:
        """The settings that `reference` names."""
        if isinstance(self.reference, dict):
            return {*self.reference, *(str(name) for one in self.reference for name in self.references_of(one))}
        return {str(self.reference)}

    def references_of(self, value: Any) -> list[float | str]:
        """The settings, or the value of `x`, that a setting or a value is compared with."""
        named = self.reference.get(value, []) if isinstance(self.reference, dict) else self.reference
        return [one for one in (named if isinstance(named, list) else [named]) if one not in (None, value)]


@section
class Study:
    """A file of `studies/`; `scales` and `settings` are lists of overrides as `dvc exp run -S` takes them, `note` is
    what a reader of the results must know."""

    title: Name
    source: Name
    targets: list[Name]
    shown: Shown
    scales: dict[Scale, list[Name]]
    settings: dict[Setting, list[Name]] = field(default_factory=dict)
    note: Name | None = None


@dataclass(frozen=True)
class Grid:
    """The experiments of a study at one scale; DVC queues their product.

    Attributes:
        name: prefix of the names of its experiments; a hash of the targets, the settings and the overrides other than
            the axes.
        overrides: of all experiments, as `dvc exp run -S` takes them.
        axes: the keys with several values in the study's file, and the seed.
        settings: the named settings, each with all of its overrides; none: `overrides` are all there is.
        chosen: those that are run.
        scale: a key of the study's `scales`.
        given: the overrides of the command.
    """

    name: str
    overrides: list[str]
    axes: list[str]
    settings: dict[str, list[str]] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)
    scale: str = SMALL
    given: list[str] = field(default_factory=list)

    @property
    def options(self) -> list[str]:
        """What a command needs behind the study's name to mean this grid."""
        return [*self.given, *([] if self.scale == SMALL else ["--scale", self.scale])]

    @property
    def families(self) -> dict[str, list[str]]:
        """The end of an experiment's name, before DVC's number, to the overrides; several values make several."""
        return {f"-{name}": self.settings[name] for name in self.chosen} or {"": self.overrides}

    def setting_of(self, experiment: str) -> str | None:
        """The setting of an experiment by its name, which a random part may stand in before it; None: it has none.

        Raises:
            UserError: the study has settings, and the name has none of them.
        """
        named = experiment.removeprefix(f"{self.name}-")
        found = [one for one in self.settings if re.fullmatch(rf"([^-]+-)?{re.escape(one)}(-\d+)?", named)]
        if self.settings and not found:
            raise UserError(f"experiment {experiment} names none of the settings {', '.join(self.settings)}")
        return max(found, key=len, default=None)


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
    _check_shown(study, path)
    for scale in study.scales:
        try:
            found = grid(name, study, scale, [])
        except UserError as error:
            raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
        if SEED not in found.axes:
            raise UserError(f"{path}: scale {scale} has no seed: add seed=13,14,15")
        if study.shown.kind in ("lines", "spread"):
            _check_x(study, scale, found, path)
        if study.shown.kind == "differences" and (unknown := sorted(study.shown.references - set(found.chosen))):
            raise UserError(
                f"{path}: shown.reference: {unknown[0]} is no setting of scale {scale}: "
                f"{', '.join(found.chosen) or 'it has none'}"
            )
    return study


def _check_shown(study: Study, path: Path) -> None:
    """Check that each metric is one of the tables, and that `targets` write it.

    Raises:
        UserError: it is not, they do not, or there is a reference or an x that the kind does not have.
    """
    shown = study.shown
    if unknown := [metric for metric in shown.every if metric not in COLUMNS]:
        raise UserError(f"{path}: shown: {unknown[0]} is no metric of the tables: {', '.join(COLUMNS)}")
    for variant in shown.variants:
        for metric in shown.every:
            stage = metrics_file(scorer_of(metric), variant).stage
            if study.targets and stage not in study.targets:
                raise UserError(f"{path}: shown: {metric} of {variant} is written by {stage}: add it to targets")
    if shown.kind == "table" and shown.reference is not None:
        raise UserError(f"{path}: shown.reference: the kind table compares the variants; settings are of differences")
    named = {*shown.reference} if shown.x is not None and isinstance(shown.reference, dict) else set()
    if odd := sorted(named - {*study.scales}):
        raise UserError(f"{path}: shown.reference: {odd[0]} is no scale of the study: {', '.join(study.scales)}")
    if shown.x is not None and shown.kind not in ("lines", "spread"):
        raise UserError(f"{path}: shown.x is of the kinds lines and spread, and this study is of {shown.kind}")


def _check_x(study: Study, scale: Scale, found: Grid, path: Path) -> None:
    """Check that the x of a figure is an axis of numbers, and the reference one of them.

    Raises:
        UserError: it is not.
    """
    x, reference = study.shown.x, study.shown.at(scale).reference
    if x not in set(found.axes) - {SEED}:
        axes = ", ".join(key for key in found.axes if key != SEED) or "there is none"
        raise UserError(f"{path}: shown.x = {x!r} is no axis of scale {scale} other than the seed: {axes}")
    values = _pairs(study.scales[scale])[str(x)].split(",")
    numbers = []
    for value in values:
        try:
            numbers.append(float(value))
        except ValueError:
            raise UserError(f"{path}: shown.x = {x!r} has a value that is no number: {value}") from None
    if reference is not None and reference not in numbers:
        raise UserError(f"{path}: shown.reference: {reference} is no value of {x} at scale {scale}: {','.join(values)}")


def grid(name: str, study: Study, scale: str, overrides: Sequence[str]) -> Grid:
    """The experiments of a scale.

    Args:
        name: of the study.
        study: its file.
        scale: a key of its `scales`.
        overrides: `key=value`; each replaces that of the scale with the same key, but not that of a setting. `setting`
            names settings to run.

    Raises:
        UserError: an override has no value or is of a key that all settings have, or there is no such scale or setting.
    """
    if scale not in study.scales:
        raise UserError(f"{name} has no scale {scale}: {', '.join(study.scales)}")
    path = STUDIES / f"{name}.yaml"
    defaults = _pairs(study.scales[scale], f"{path}: scales.{scale}: ")
    given = _pairs(overrides)
    values = defaults | given
    settings = {one: _pairs(texts, f"{path}: settings.{one}: ") for one, texts in study.settings.items()}
    chosen = values.pop(SETTING).split(",") if SETTING in values else list(settings)
    # DVC numbers the experiments of a setting: `lr-2` would also be the second of `lr`.
    if unclear := [(one, two) for one in settings for two in settings if re.fullmatch(rf"{re.escape(one)}-\d+", two)]:
        raise UserError(f"{path}: settings {' and '.join(unclear[0])} could name the same experiment: rename one")
    if unknown := [one for one in chosen if one not in settings]:
        raise UserError(f"{name} has no setting {unknown[0]}: {', '.join(settings) or 'it has none'}")
    if useless := [key for key in given if chosen and all(key in settings[one] for one in chosen)]:
        raise UserError(f"{useless[0]} is what the settings of {name} differ in: choose some by setting={chosen[0]}")
    if several := [f"{one}: {key}" for one in chosen for key, text in settings[one].items() if _is_sweep(key, text)]:
        raise UserError(f"{path}: settings.{several[0]} has several values: a setting is one point, give each a name")
    swept = {key for key, text in (*defaults.items(), *given.items()) if _is_sweep(key, text)}
    axes = [key for key in values if key in swept or (key == SEED and SEED in defaults)]
    if groups := [key for key in axes if key in GROUPS]:
        raise UserError(
            f"{path}: {groups[0]} with several values cannot be told in the results: write a setting for each"
        )
    fixed = {key: text for key, text in values.items() if key not in axes}
    what = [sorted(fixed.items()), sorted(study.targets), *([study.settings] if study.settings else [])]
    digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=4)
    merged = {one: _texts(values | own) for one, own in settings.items()}
    return Grid(f"{name}-{digest.hexdigest()}", _texts(values), axes, merged, chosen, scale, list(overrides))


def _is_sweep(key: str, text: str) -> bool:
    """Whether an override has several values; the comma of a list or of a dictionary separates none.

    Raises:
        UserError: it is no override of Hydra's.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if key == SETTING:
        return False
    try:
        return bool(OverridesParser.create().parse_override(f"{key}={text}").is_sweep_override())
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{key}={text} is no override as `dvc exp run -S` takes it: {reason}") from None


def _texts(overrides: Mapping[str, str]) -> list[str]:
    return [f"{key}={text}" for key, text in overrides.items()]


def _pairs(overrides: Sequence[str], where: str = "") -> dict[str, str]:
    if wrong := [override for override in overrides if "=" not in override]:
        raise UserError(f"{where}{wrong[0]!r} is no override: write key=value")
    return dict(override.split("=", 1) for override in overrides)
