"""Stage `judge_safety@<variant>`: a language model compares replies to people in danger with the reference variant's.

    python -m stages.judge_safety sft-dpo

has the model of section `judge` compare the replies of stage `safety` to the messages of people in danger, as stage
`judge` does with dialogues, with the prompt in `safety.judge_prompt`. It writes
`data/scores/judge_safety/sft-dpo.parquet` (each duel with its verdicts and reasons),
`metrics/judge_safety/sft-dpo.json` (win rates, and which reply the judge prefers where the rules of the screen differ
between the two), their intervals in `metrics/intervals/judge_safety/sft-dpo.json`, and
`metrics/judge_safety/sft-dpo.signature.json`. The files are empty for a variant that is not in `judged`, has no model,
or is the reference variant.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attune.config.params import load, named
from attune.config.schema import Params
from attune.pairs.duels import judge_signature, judged
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import DataError, reported
from attune.runtime.io import write_frame, write_json
from attune.scoring.intervals.stored import read_scores, write_intervals
from attune.scoring.intervals.wilson import wilson
from attune.scoring.judge.rates import metrics, prefers, rows, win_rates
from attune.scoring.judge.verdicts import Duel
from attune.scoring.safety.gate import HARM, PREFIX
from attune.scoring.safety.probes import read_probes

if TYPE_CHECKING:
    import pandas as pd

PROBES = Path("data/safety/probes.jsonl")
SCORES = Path("data/scores/judge_safety")
METRICS = Path("metrics/judge_safety")
NAME = "judge_safety"
RULES = {"harm": HARM, "human_help": f"{PREFIX}human_help"}
"""What the judge may prefer, to the column of stage `safety` that says it of a reply."""
DIGITS = 4


def in_danger(variant: str, reference: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores of both variants' replies to people in danger, in one order; empty if one of them has no model.

    Raises:
        DataError: the two were asked different probes.
    """
    both = [read_scores("safety", name) for name in (variant, reference)]
    ours, theirs = (scores[scores["form"] != "harmless"].reset_index(drop=True) for scores in both)
    if ours.empty or theirs.empty:
        return ours[:0], theirs[:0]
    if ours["id"].tolist() != theirs["id"].tolist():
        raise DataError(f"{variant} and {reference} were asked different probes of safety: run `dvc repro`")
    return ours, theirs


def duels(ours: pd.DataFrame, theirs: pd.DataFrame) -> list[Duel]:
    """The duels of the replies in two tables of `in_danger`, with the whole conversation before them.

    Raises:
        DataError: a probe is not in `PROBES`.
    """
    turns = {probe.id: tuple((turn.role, turn.text) for turn in probe.turns) for probe in read_probes(PROBES)}
    if lost := [name for name in ours["id"] if name not in turns]:
        raise DataError(f"{PROBES} lacks {lost[0]}, which a variant was asked: run `dvc repro`")
    pairs = zip(ours["id"], ours["reply"], theirs["reply"], strict=True)
    return [Duel(name, turns[name], reply, other) for name, reply, other in pairs]


def main(variant: str, params: Params, answers: Path | None = None) -> None:
    """Write the scores, metrics, intervals and signature of a variant.

    Args:
        variant: a key of `probed`.
        params: of the run.
        answers: the cache; None: that of the project.
    """
    named(params.probed, variant, "probed")
    ours, theirs = in_danger(variant, params.evaluate.reference)
    if variant == params.evaluate.reference or variant not in params.judged:
        ours, theirs = ours[:0], theirs[:0]
    group = duels(ours, theirs)
    given = judged(group, params.safety.judge_prompt, "safety.judge_prompt", params, answers) if group else []
    table = rows(group, given, "reference")
    rates, bounds = win_rates(table, [one.id for one in group], params.evaluate.resamples, params.seed)
    values = {name.replace("judge", NAME, 1): value for name, value in (metrics(given) | rates).items()}
    bounds = {name.replace("judge", NAME, 1): value for name, value in bounds.items()}
    for name, rule in RULES.items():
        hits, of = prefers(*(column.to_numpy(dtype=float) for column in (table["win"], ours[rule], theirs[rule])))
        if of:
            key = f"{NAME}_prefers_{name}"
            values |= {key: 100 * hits / of, f"{key}_duels": float(of)}
            low, high = wilson(hits / of, of)
            bounds |= {f"{key}.low": 100 * low, f"{key}.high": 100 * high}
    write_frame(SCORES / f"{variant}.parquet", table)
    write_json(METRICS / f"{variant}.json", {name: round(value, DIGITS) for name, value in values.items()})
    write_intervals(NAME, variant, bounds)
    write_json(METRICS / f"{variant}.signature.json", signature(len(group), params))


def signature(messages: int, params: Params) -> dict[str, str]:
    """What explains the metrics: the judge, its prompt and the number of messages."""
    if not messages:
        return {NAME: "not asked: not in judged, without a model, or the reference variant"}
    return judge_signature(NAME, params.safety.judge_prompt, params) | {f"{NAME}_messages": str(messages)}


if __name__ == "__main__":
    with reported():
        arguments = stage_arguments(__doc__, variant="a key of probed")
        main(arguments.variant, load())
