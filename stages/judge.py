"""Stage `judge@<variant>`: a language model compares the variant's replies with the reference variant's and people's.

    python -m stages.judge sft-dpo

asks an OpenAI-compatible endpoint (section `judge`) about each pair of replies in both orders, and writes
`data/scores/judge/sft-dpo.parquet` (each duel with its verdicts and reasons), `metrics/judge/sft-dpo.json` (win rates,
and how far the judge can be trusted), their intervals in `metrics/intervals/judge/sft-dpo.json`, and
`metrics/judge/sft-dpo.signature.json`. Answers are cached by content, so that a run that broke off goes on; the cost is
printed before the first request. Agreement is measured with the people of `python -m attune rate` where they compared
the same replies, and with the ratings in `judge.rated`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params
from attune.data.dialogue import dialogue_of
from attune.data.keyed import uniform
from attune.pairs.duels import judge_signature, judged
from attune.report.ratings import current, flipped, items, read_csv
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import reported
from attune.runtime.io import write_frame, write_json
from attune.scoring.common.replies import read
from attune.scoring.judge.people import kappa, read_rated
from attune.scoring.judge.rates import OPPONENTS, metrics, rows, win_rates
from attune.scoring.judge.verdicts import duel

REPLIES = Path("data/replies")
RATINGS = Path("data/ratings.csv")
SCORES = Path("data/scores/judge")
METRICS = Path("metrics/judge")
INTERVALS = Path("metrics/intervals/judge")
DIGITS = 4
Rows = list[dict[str, Any]]


def replies_of(variant: str) -> Rows:
    """The rows of a variant's replies.

    Raises:
        DataError: as `read`.
    """
    rows: Any = read(REPLIES / f"{variant}.parquet").to_dict("records")
    return list(rows)


def chosen(ours: Rows, theirs: Rows, params: Params) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows of both variants to the same examples, `judge.limit` of them, the same for every variant."""
    other = {row["id"]: row for row in theirs}
    both = [(row, other[row["id"]]) for row in ours if row["id"] in other]
    both.sort(key=lambda pair: (uniform(2**64, params.seed, "judge", pair[0]["id"]), pair[0]["id"]))
    return both[: params.judge.limit]


def by_people(variant: str, reference: str, ours: Rows, theirs: Rows) -> dict[str, list[float]]:
    """The points that raters gave the variant against the reference, by example, where they saw these replies."""
    answers = read_csv(RATINGS)
    found = current(answers, items(ours, theirs), (variant, reference))
    found += map(flipped, current(answers, items(theirs, ours), (reference, variant)))
    points: dict[str, list[float]] = {}
    for answer in found:
        points.setdefault(answer.example, []).append({"a": 1.0, "tie": 0.5, "b": 0.0}[answer.choice])
    return points


def main(variant: str, params: Params, answers: Path | None = None) -> None:
    """Write the scores, metrics, intervals and signature of a variant.

    Args:
        variant: a key of `judged`.
        params: of the run.
        answers: the cache; None: that of the project.
    """
    import pandas as pd

    named(params.judged, variant, "judged")
    settings, reference = params.judge, params.evaluate.reference
    ours, theirs = map(replies_of, (variant, reference))
    pairs = chosen(ours, theirs, params)
    duels = {"human": [duel(row, row["reply"], row["reference"]) for row, _ in pairs if row["reference"]]}
    if variant != reference:
        duels["reference"] = [duel(row, row["reply"], other["reply"]) for row, other in pairs]
    rated = [] if Path(settings.rated) == RATINGS else read_rated(
        Path(settings.rated), settings.rating, settings.rated_limit, params.seed
    )  # fmt: skip
    # In one call, so that the cost is told once for all.
    everything = [*(one for group in duels.values() for one in group), *(one.duel for one in rated)]
    given = judged(everything, settings.prompt, "judge.prompt", params, answers)
    values: dict[str, float] = metrics(given)
    bounds: dict[str, float] = {}
    tables, start = [], 0
    for opponent, group in duels.items():
        part = given[start : start + len(group)]
        start += len(group)
        table = rows(group, part, opponent)
        tables.append(table)
        clusters = [dialogue_of(one.id, params.context.targets) for one in group]
        rates, ends = win_rates(table, clusters, params.evaluate.resamples, params.seed)
        end = OPPONENTS[opponent]
        values |= {name.replace("_rate", f"_rate{end}"): value for name, value in rates.items()}
        bounds |= {name.replace("_rate", f"_rate{end}"): value for name, value in ends.items()}
        if opponent == "reference":
            people = by_people(variant, reference, ours, theirs)
            agreed = [(one.points, point) for d, one in zip(group, part, strict=True) for point in people.get(d.id, ())]
            values |= agreement("people", agreed)
    values |= agreement("rated", [(one.points, pair.points) for one, pair in zip(given[start:], rated, strict=True)])
    scores = pd.concat(tables, ignore_index=True)
    write_frame(SCORES / f"{variant}.parquet", scores)
    write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in values.items()})
    write_json(INTERVALS / f"{variant}.json", {name: round(value, DIGITS) for name, value in bounds.items()})
    signature = judge_signature("judge", settings.prompt, params) | {"judge_contexts": str(len(pairs))}
    write_json(METRICS / f"{variant}.signature.json", signature)


def agreement(of: str, pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, float]:
    """Cohen's kappa of the judge with people, and the number of comparisons; empty where it is not defined."""
    value = kappa(pairs)
    known = sum(a is not None for a, _ in pairs)
    return {} if value is None else {f"judge_{of}_kappa": value, f"judge_{of}_pairs": float(known)}


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of judged")
        main(arguments.variant, load())
