"""EmPO's published systems of 7 B parameters as a record: their replies, scored as any others, and people's ratings.

`python -m attune record --published` takes the replies of four systems to EmpatheticDialogues' test split, and people's
ratings of some of them, from `empo_human` of data/sources.yaml, which CORPORA_DIR must hold. The human replies are a
fifth system, `people`, with the metrics that need no reference. Classifiers count where `models/` has them; the levels
of EPITOME's are compared with the published ones on the dialogues that no classifier here learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attune.classifiers.epitome.agreement import agreement, differences
from attune.classifiers.epitome.model import MECHANISMS
from attune.classifiers.epitome.published_levels import read_levels
from attune.config.schema import Params
from attune.generation.made_elsewhere import read as read_replies
from attune.report.tables import PEOPLE, Metrics
from attune.report.validity import MEAN
from attune.runtime.errors import DataError
from attune.runtime.io import read_records, sha256_of
from attune.tools.rated import CORPUS, FILE, Rated, corpus_files
from attune.tools.rated import read as read_ratings
from attune.tools.score import Scored, compare, score_rows
from attune.tools.validity import say

BASE, *OTHERS = SYSTEMS = ("base", "base-30", "sft", "sft-dpo")
"""Of 7 B parameters; the first is the one that the others are compared with."""
SHORTS = ("er", "ip", "ex")
DIGITS = 4
Parts = tuple[dict[str, Metrics], dict[str, Metrics]]
"""System to metrics, and to the ends of their intervals."""


def results(params: Params) -> dict[str, Any]:
    """The part of the record that is measured.

    Raises:
        UserError: CORPORA_DIR is not set.
        DownloadError: it lacks a file, or has another one.
    """
    names = {system: f"replies-{system}.csv" for system in SYSTEMS}
    with TemporaryDirectory() as made:
        paths = dict(zip(names, corpus_files(tuple(names.values()), Path(made)), strict=True))
        (rated,) = corpus_files((FILE,), Path(made))
        scored = score_systems(paths, params)
        metrics, intervals = measured(scored, params)
        ratings, rating_intervals = rated_systems(read_ratings(rated), params)
        levels, level_intervals = published_levels(paths, params)
        files = [*paths.values(), rated]
        return {
            "data": {"replies": {system: len(one.scores) for system, one in scored.items()}},
            "metrics": metrics,
            "intervals": intervals,
            "signature": {system: one.signature for system, one in scored.items()},
            "ratings": {"metrics": ratings, "intervals": rating_intervals},
            "published_levels": {"metrics": levels, "intervals": level_intervals},
            "agreement": agreement_with_published(Path(made), scored),
            "left_out": sorted({note for system in SYSTEMS for note in scored[system].notes}),
            "corpus": {"name": CORPUS, "sha256": {path.name: sha256_of(path) for path in files}},
        }


def score_systems(paths: dict[str, Path], params: Params) -> dict[str, Scored]:
    """The systems' replies and the human ones, scored."""
    scored = {}
    for system, path in paths.items():
        say(f"scoring {system}")
        rows, dropped = read_replies(path, {"label": "emotion"})
        scored[system] = score_rows(path, rows, dropped, True, params)
        if system == BASE:
            human = [replace(row, reply=row.reference or "", reference=None) for row in rows]
            scored[PEOPLE] = score_rows(path, human, dropped, True, params)
    return {system: scored[system] for system in (*paths, PEOPLE)}


def measured(scored: dict[str, Scored], params: Params) -> Parts:
    """The metrics of each system, and the ends of their intervals and of those of the differences to the base."""
    metrics, intervals = {}, {}
    for system, one in scored.items():
        say(f"comparing {system}")
        metrics[system] = {name: values["value"] for name, values in one.metrics.items()}
        intervals[system] = {
            f"{name}.{end}": values[end]
            for name, values in one.metrics.items()
            for end in ("low", "high")
            if end in values
        }
        if system != BASE:
            intervals[system] |= compare(scored[BASE], one, params).differences
    return metrics, intervals


def rated_systems(rows: Sequence[Rated], params: Params) -> Parts:
    """People's mean rating of each system by scale and over all scales."""
    import numpy as np

    by_system: dict[str, dict[str, Rated]] = {}
    for row in rows:
        by_system.setdefault(row.system, {})[row.dialogue] = row
    dialogues = sorted(by_system[BASE])
    if lacking := [name for name, found in by_system.items() if sorted(found) != dialogues]:
        raise DataError(f"{FILE}: {', '.join(lacking)}: people rated other dialogues than of {BASE}")
    scales = [*rows[0].ratings, MEAN]
    columns = {
        name: {scale: np.array([found[key].rating(scale) for key in dialogues]) for scale in scales}
        for name, found in by_system.items()
    }
    return bounded({name: columns[name] for name in (*SYSTEMS, PEOPLE)}, params)


def published_levels(paths: dict[str, Path], params: Params) -> Parts:
    """The levels that the corpus has of replies, and their differences; a system without them is left out."""
    import numpy as np

    found: dict[str, Any] = {}
    for system, path in paths.items():
        rows = [cells for _, cells in read_records(path, None, DataError, "")]
        human = {f"level_{one}": np.array([float(row[f"reference_level_{one}"]) for row in rows]) for one in SHORTS}
        if f"level_{SHORTS[0]}" in rows[0]:
            levels = {f"level_{one}": np.array([float(row[f"level_{one}"]) for row in rows]) for one in SHORTS}
            gaps = {f"diff_{one}": (levels[f"level_{one}"] - human[f"level_{one}"]) ** 2 for one in SHORTS}
            found[system] = levels | gaps
        found.setdefault(PEOPLE, human)
    return bounded({system: found[system] for system in (*SYSTEMS, PEOPLE) if system in found}, params)


def agreement_with_published(folder: Path, scored: dict[str, Scored]) -> dict[str, Any]:
    """How the classifiers' levels agree with the published ones on held-out dialogues; empty without classifiers.

    Args:
        folder: that holds `replies-<system>.csv`.
        scored: of each system, and of `PEOPLE`, with the rows in the order of their files.

    Returns:
        `levels`, of `agreement`; `differences`, of each system by both; `dialogues`, their number.
    """
    if f"level_{SHORTS[0]}" not in scored[PEOPLE].scores:
        return {}
    rows = read_levels(folder)
    ours = {
        mechanism: [
            int(level)
            for system in dict.fromkeys(row.system for row in rows)
            for level in scored[system].scores[f"level_{short}"]
        ]
        for mechanism, short in MECHANISMS.items()
    }
    held_out = [i for i, row in enumerate(rows) if row.split == "test"]
    parts = [rows[i] for i in held_out], {name: [levels[i] for i in held_out] for name, levels in ours.items()}
    return {
        "levels": agreement(*parts),
        "differences": differences(*parts),
        "dialogues": len({row.dialogue for row in parts[0]}),
    }


def bounded(columns: dict[str, dict[str, Any]], params: Params) -> Parts:
    """Means of the columns of each system, with their intervals and those of the differences to the base."""
    from attune.scoring.intervals.bootstrap import intervals

    resamples, seed = params.evaluate.resamples, params.seed
    metrics = {
        system: {name: round(float(column.mean()), DIGITS) for name, column in own.items()}
        for system, own in columns.items()
    }
    ends = {
        system: {
            name: round(value, DIGITS)
            for name, value in intervals(own, None if system == BASE else columns[BASE], resamples, seed).items()
        }
        for system, own in columns.items()
    }
    return metrics, ends
