"""Measure how far each metric agrees with people: its rank correlation with their ratings of replies.

    python -m attune validity
    python -m attune validity ratings.csv [--scale NAME] [-o JSON]

Without a file the ratings are those of EmPO's human evaluation (`empo_human` of data/sources.yaml), from the folder
that CORPORA_DIR names: the result goes to metrics/validity.json, which the summary shows beside its columns, and into
docs/metrics.md. A csv of one's own has the columns `context` (chat messages as JSON, or the turn before the reply) and
`reply`, a rating, and optionally `reference` (a human reply; empty where there is none), `system` and `rater`. A rating
on a scale stands in the column of its name (`rating`, or those of --scale); with several raters either in `rating_1`,
`rating_2`, …, or in a row for each of them, told apart by `rater`. Empty ratings are left out.

Each metric that has a score by reply gets Spearman's correlation for each scale and for their mean, with 95 %
intervals by a bootstrap over dialogues, the share of pairs of replies to one dialogue and of pairs of systems that it
orders as people do, and the number of replies behind it. Replies that are the reference itself are left out and told
apart. Encoder and layer are those of params.yaml; a classifier counts where `models/` has it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import combinations
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attune.config.params import load
from attune.config.schema import Params
from attune.generation.made_elsewhere import OwnReply
from attune.report.validity import MEAN, VALIDITY, better, table
from attune.runtime.cli import command_parser
from attune.runtime.errors import DataError, UserError
from attune.runtime.io import between_marks, read_text, sha256_of, write_json, write_text
from attune.tools.rated import SCALES, Rated, published, read
from attune.tools.score import CLASSIFIERS, gaps, row_scores

if TYPE_CHECKING:
    import pandas as pd

PAGE = Path("docs/metrics.md")
BEGIN, END = "<!-- validity: written by python -m attune validity -->", "<!-- end of validity -->"
DIGITS = 4
NO_SCORE = (
    "no score by reply: dist_1, dist_2, dist_3 and repeated_share (counts over all replies), dbt_gap and "
    "behaviour_reflection_to_question (ratios of means); bleu_n is sentence BLEU here",
    "not of replies: preference_accuracy and MMLU, which need the model",
)


def measure(rows: Sequence[Rated], source: str, models: bool, params: Params) -> dict[str, Any]:
    """All numbers, in the form of `metrics/validity.json`.

    Args:
        rows: of `read`.
        source: whose ratings they are, for the pages.
        models: whether to use the encoder and the classifiers.
        params: of the project.

    Raises:
        DataError: fewer than three replies are not the reference itself.
    """
    rated = [row for row in rows if not row.human]
    if len(rated) < 3:
        raise DataError(f"{source}: {len(rated)} replies are not the reference itself: at least three are needed")
    notes = gaps([row.own for row in rated], models)
    scores, signature = _scores([row.own for row in rated], models, params, notes)
    names = list(rated[0].ratings)
    kept = [*names, *([MEAN] if len(names) > 1 else [])]
    dialogues = [row.dialogue for row in rated]
    metrics = {}
    for number, name in enumerate(scores, start=1):
        say(f"correlating {number} of {len(scores.columns)}: {name}")
        metrics[str(name)] = _metric(str(name), scores[name].tolist(), rated, kept, dialogues, params)
    return {
        "ratings": {
            "source": source,
            "replies": len(rated),
            "dialogues": len(set(dialogues)),
            "ratings": sum(max(len(row.by_rater(name)) for name in names) for row in rated),
        },
        "ceiling": {name: _ceiling(rated, name, dialogues, params) for name in kept},
        "metrics": metrics,
        "systems": _systems(rated, scores),
        "human_replies": _human([row for row in rows if row.human]),
        "left_out": [*notes, *NO_SCORE],
        "signature": signature,
        "bootstrap": {"level": 95, "resamples": params.evaluate.resamples, "seed": params.seed},
    }


def _scores(
    replies: Sequence[OwnReply], models: bool, params: Params, notes: list[str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """A column for each metric with a score by reply, NaN where a reply has none; levels before differences."""
    from attune.scoring.text.overlap import BLEU_ORDERS
    from attune.scoring.validity import sentence_bleu

    say(f"scoring {len(replies)} replies")
    frame, _, signature = row_scores(replies, CLASSIFIERS if models else None, params, notes, say)
    numbers = frame.select_dtypes("number")
    counts = [name for name in numbers if str(name).startswith("bleu_") or "reference_" in str(name)]
    known = [row.reference is not None for row in replies]
    numbers = numbers.drop(columns=counts).dropna(axis="columns", how="all")
    for order in BLEU_ORDERS if any(known) else ():
        numbers[f"bleu_{order}"] = [
            sentence_bleu(row.reply, row.reference, order) if row.reference is not None else float("nan")
            for row in replies
        ]
    names = sorted([str(name) for name in numbers], key=_place)
    return numbers[names], signature


def _place(name: str) -> tuple[int, str]:
    """Levels lead, differences follow, then the other classifiers, BERTScore and overlap."""
    order = ("level_", "diff_", "dbt_", "behaviour_", "bertscore_", "bleu_", "rouge_", "dist_")
    return next((place for place, start in enumerate(order) if name.startswith(start)), len(order)), name


def _metric(
    name: str, column: Sequence[float], rated: Sequence[Rated], scales: Sequence[str], dialogues: Sequence[str],
    params: Params,
) -> dict[str, Any]:  # fmt: skip
    import numpy as np

    from attune.scoring.validity import pairwise_agreement, spearman

    resamples, seed = params.evaluate.resamples, params.seed
    known = [i for i, value in enumerate(column) if isfinite(value)]
    values = np.array([column[i] for i in known], dtype=float)
    found: dict[str, Any] = {"n": len(known), "rho": {}}
    for scale in scales:
        ratings = np.array([rated[i].rating(scale) for i in known], dtype=float)
        both = np.isfinite(ratings)
        groups = [dialogues[i] for i, one in zip(known, both, strict=True) if one]
        enough = both.sum() >= 3
        result = spearman(values[both], ratings[both], resamples, seed, groups) if enough else (np.nan,) * 3
        found["rho"][scale] = _rounded(result)
    overall = np.array([rated[i].rating(MEAN) for i in known], dtype=float)
    groups = [dialogues[i] for i in known]
    share, pairs = pairwise_agreement(better(name) * values, overall, groups, resamples, seed)
    # Equal scores order nothing.
    alike = len(set(values.tolist())) < 2
    found["pairwise"] = _rounded((np.nan,) * 3 if alike else share) | {"n": pairs}
    systems = [rated[i].system for i in known]
    found["systems_agree"] = None if alike else _system_pairs(better(name) * values, overall, systems)
    return found


def _rounded(estimate: Sequence[float]) -> dict[str, float | None]:
    values = (round(float(value), DIGITS) if isfinite(value) else None for value in estimate)
    return dict(zip(("value", "low", "high"), values, strict=True))


def _system_pairs(values: Any, ratings: Any, systems: Sequence[str]) -> str | None:
    """How many pairs of systems the means of a metric order as people's means do; None with fewer than two systems."""
    names = sorted(set(systems) - {""})
    rows = {name: [i for i, one in enumerate(systems) if one == name] for name in names}
    pairs = list(combinations([(float(values[i].mean()), float(ratings[i].mean())) for i in rows.values()], 2))
    agree = sum((first[0] - second[0]) * (first[1] - second[1]) > 0 for first, second in pairs)
    return f"{agree} of {len(pairs)}" if pairs else None


def _ceiling(rated: Sequence[Rated], scale: str, dialogues: Sequence[str], params: Params) -> dict[str, Any]:
    from attune.scoring.validity import ceiling

    by_rater = [row.by_rater(scale) for row in rated]
    result, n = ceiling(by_rater, params.evaluate.resamples, params.seed, dialogues)
    return _rounded(result) | {"n": n}


def _systems(rated: Sequence[Rated], scores: pd.DataFrame) -> dict[str, dict[str, float]]:
    """System to its mean rating and the means of the metrics, the best rated first."""
    by_name: dict[str, list[int]] = {}
    for index, row in enumerate(rated):
        by_name.setdefault(row.system, []).append(index)
    by_name.pop("", None)
    ratings = {name: fmean(rated[i].rating(MEAN) for i in indices) for name, indices in by_name.items()}
    return {
        name: {"rating": round(ratings[name], DIGITS), "n": len(by_name[name])}
        | {str(key): round(float(mean), DIGITS) for key, mean in scores.iloc[by_name[name]].mean().dropna().items()}
        for name in sorted(by_name, key=lambda name: -ratings[name])
    }


def _human(rows: Sequence[Rated]) -> dict[str, float] | None:
    return {"replies": len(rows), "rating": round(fmean(row.rating(MEAN) for row in rows), DIGITS)} if rows else None


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def into_page(text: str, page: str) -> str:
    """The page with the table between its marks.

    Raises:
        UserError: a mark is missing or repeated.
    """
    return between_marks(page, BEGIN, END, f"\n\n{text}\n\n" if text else "\n\n", PAGE)


def main(argv: Sequence[str]) -> None:
    """Print the table, and write what was asked for."""
    parser = command_parser("validity", __doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a csv of ratings; default: EmPO's human evaluation")
    parser.add_argument("--scale", action="append", metavar="NAME", help="a column of ratings, for each scale")
    parser.add_argument("--no-models", action="store_true", help="only what needs neither encoder nor classifier")
    parser.add_argument("-o", "--output", type=Path, metavar="JSON", help="also write all numbers and the signature")
    arguments = parser.parse_args(argv)
    if arguments.scale and arguments.file is None:
        parser.error("--scale is of a csv of one's own: name the file")
    if arguments.no_models and arguments.file is None and arguments.output is None:
        parser.error(f"--no-models measures a part, which does not go into {VALIDITY}: name a file by -o")
    params = load()
    if arguments.file is None:
        # Before anything is scored, which takes minutes.
        into_page("", read_text(PAGE, UserError, "run from the project's root"))
        (rows, digest), source = published(), "EmPO"
    else:
        rows, source = read(arguments.file, tuple(arguments.scale or SCALES)), arguments.file.name
        digest = sha256_of(arguments.file)
    numbers = measure(rows, source, not arguments.no_models, params)
    numbers["ratings"]["sha256"] = digest
    text = table(numbers)
    # The published ratings go to the committed file and page, unless they are to go elsewhere.
    if output := arguments.output or (None if arguments.file else VALIDITY):
        write_json(output, numbers)
    if output == VALIDITY and not arguments.file:
        write_text(PAGE, into_page(text, read_text(PAGE, UserError, "run from the project's root")))
    print(text)
